"""Self-Transcendence: a run that aligned with its latents teaches a new run (Sun et al., arXiv 2601.07773).

    first phase     L = L_gen + coefficient mean_b [low <= t_b <= high] mean | Linear(LN( P(h_l) )) - x0 |^2
    second phase    L = L_gen + coefficient mean_b [low <= t_b <= high] mean | P(h_l) - f |^2
                    f = f_null + guidance (f_y - f_null)

f_y and f_null are features of the frozen first run, `encoder.name = run:PATH?layer=8`, at the same x_t and t,
with the label before drop and without one. P is REPA's three-layer projector, and LN has no weights.
    flowrace run PRESET --set method.name=self_transcendence --set train.steps=200000
    flowrace run PRESET --set method.name=self_transcendence --set method.encoder.name=run:runs/ID
The published first phase has 40 epochs, 200k steps of ImageNet.
Defaults: the released scripts for B (csslc/Self-Transcendence 42fde5d, train_vaeloss.sh, train_selftrans.sh),
coefficient 0.5, times 0.4 to 0.7, layer 2 and then 6, guidance 30, and an end of the term after 100k steps in
the second phase. The code was read in a stored copy, so it counts as secondary.
Cost: none in the first phase; in the second, two passes of the frozen run up to its layer.
Ours: for other sizes, layer 1 / 6 and then 1 / 2 of the depth. The frozen run is its EMA, where the release
has the trained weights. The released networks normalise queries and keys (`--qk-norm`, on by default).
Disputed: the paper aligns with the latent x0, the released first phase with the velocity eps - x0
(`latent_target`). The release multiplies masks (B, 1, 1, 1) with losses (B,), so that its mask scales the
mean over all samples. Here the mask selects samples, as in the paper. The released train_selftrans.py calls
the loss for texts, which it does not import. Here the loss for labels is the reference, `selftrans_Loss`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from harness.backbone.network import Prediction
from harness.backbone.tokens import patchify
from harness.config.backbone_spec import BackboneSpec
from harness.config.encoder_fields import names_run
from harness.flow.batch import Batch, Draw
from harness.flow.path import velocity_target
from harness.flow.student import Student
from methods.common.alignment import EncoderSpec, check_layer, layer_at, mlp, resolved_layer, taps_of
from methods.common.method import Method, MethodConfig, Needs, Setting

LAYERS = {"B": (2, 6)}
"""The student layer of both phases, by size."""
LAST_STEP = 100_000
"""Last step with alignment in the second phase."""


class SelfTranscendence(Method):
    source = "secondary: Self-Transcendence, arXiv 2601.07773; csslc/Self-Transcendence 42fde5d"
    headline = "SiT-XL/2 FID 1.25 at 400 epochs, with guidance (its README)"
    # The first phase predicts patches of a single size, and a mask needs the sample's single time.
    parts_apart = False
    times_apart = False

    class Config(MethodConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0}
        space: ClassVar[dict[str, Any]] = {"coefficient": {"low": 0.1, "high": 2.0, "log": True}}

        name: Literal["self_transcendence"] = "self_transcendence"
        coefficient: float = Field(0.5, ge=0)
        """Weight of the alignment term."""
        encoder: EncoderSpec = EncoderSpec(name="")
        """The run of the first phase, `run:PATH`; without a name, this is the first phase."""
        guidance: float = Field(30.0, ge=0)
        """Scale of the guidance of the frozen run's features; 1 is none."""
        latent_target: Literal["x0", "velocity"] = "x0"
        """Target of the first phase: the latent, as in the paper, or the velocity, as released."""
        layer: int | None = None
        """The student layer that is aligned (1-based)."""
        time_low: float = Field(0.4, ge=0, le=1)
        """Least time of a sample that is aligned."""
        time_high: float = Field(0.7, ge=0, le=1)
        """Largest time of a sample that is aligned."""
        projector_width: int = Field(2048, ge=1)
        """Hidden width of the three-layer projector."""

        @property
        def is_taught(self) -> bool:
            """True in the second phase."""
            return bool(self.encoder.name)

        def resolved(self, backbone: BackboneSpec) -> Self:
            if self.is_taught and not names_run(self.encoder.name):
                raise ValueError(
                    f"encoder.name = {self.encoder.name}: is no flowrace run; name the run of the first "
                    "phase, run:PATH"
                )
            if self.time_low > self.time_high:
                raise ValueError(
                    f"time_low = {self.time_low}: is above time_high = {self.time_high}; choose a lower one"
                )
            usual = (layer_at(1 / 6, backbone), layer_at(1 / 2, backbone))
            default = LAYERS.get(backbone.size, usual)[self.is_taught]
            schedule = self.schedule
            if self.is_taught and schedule.until is None:
                schedule = schedule.model_copy(update={"until": LAST_STEP})
            layer = check_layer("layer", self.layer, default, backbone)
            return self.model_copy(update={"layer": layer, "schedule": schedule})

        @property
        def strength(self) -> float:
            return self.coefficient

        def needs(self) -> Needs:
            if not self.coefficient:
                return Needs()
            taps = taps_of(self.layer)
            if not self.is_taught:
                return Needs(taps=taps)
            return Needs(encoders=(self.encoder,), taps=taps, guided=self.guidance)

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        if not config.coefficient:
            return
        backbone, hidden = setting.backbone, config.projector_width
        width = backbone.size.width
        of_run = setting.encoder_dims if config.is_taught else ()
        self.projector = mlp(width, hidden, hidden, *(of_run or (width,)))
        if not config.is_taught:
            self.to_patch = nn.Linear(width, backbone.parts[0].token_values)

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        config = self.config
        projected = self.projector(prediction.hidden[resolved_layer(config.layer)])
        if config.is_taught:
            target = batch.views[0].tokens
        else:
            projected = self.to_patch(F.layer_norm(projected.float(), projected.shape[-1:], eps=1e-6))
            latent = batch.x0 if config.latent_target == "x0" else velocity_target(batch.x0, draw.noise)
            target = patchify(latent, self.setting.backbone.parts[0].patch)
        t = draw.times.levels[:, 0]
        inside = (t >= config.time_low) & (t <= config.time_high)
        return ((projected.float() - target.float()).square().mean(dim=(1, 2)) * inside).mean()
