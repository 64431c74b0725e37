"""SRA: align an early layer with a later layer of the EMA network at a cleaner time (arXiv 2505.02831).

    t' = clamp(t - u, 0, 1), u ~ U(0, offset) per sample
    L  = L_gen + coefficient * mean S( P(h_m(x_t, t)), h'_n(x_t', t') ),    P = Linear-SiLU-Linear

x_t' has the same eps and the same label after label drop.
Defaults: layers 3 -> 8 (B), 6 -> 16 (L), 8 -> 20 (XL), otherwise a quarter and 0.7 of the depth; offset 0.2.
S is smooth-L1 with beta 0.05 and weight 0.2, as in the paper's tables. With a cosine the weight is 0.5, which
is the code's default since 2026-07. The author recommends the cosine if smooth-L1 diverges (SRA issue 7).
Cost: a forward pass to layer n without gradient.
Disputed: the released cosine (`SiT-SRA/loss.py` line 22) uses torch's default dim=1, which is over tokens for
each channel: `cosine_tokens`. The paper's Eq. 3 is the ordinary cosine over channels: `cosine`. The released
weight falls tenfold per 1000 epochs after epoch 149; use `schedule` for such a decay. The paper's Table 5 has
EMA 0.999, its text and code 0.9999.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor

from harness.backbone.network import Prediction
from harness.backbone.times import Times
from harness.config.backbone_spec import BackboneSpec
from harness.flow.batch import Batch, Draw
from harness.flow.path import interpolate
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.common.alignment import (
    check_layer,
    distance,
    layer_at,
    mean_distance,
    mlp,
    resolved_layer,
    taps_of,
)
from methods.common.given_tokens import counted_tokens
from methods.common.method import Method, MethodConfig, Needs, Setting
from methods.common.missing_parts import separated

PUBLISHED_LAYERS = {"B": (3, 8), "L": (6, 16), "XL": (8, 20)}


class Sra(Method):
    source = "SRA, arXiv 2505.02831; vvvvvjdy/SRA 1723f85"
    headline = "SiT-B/2 FID 29.10 against 33.02 at 400k steps, SDE, no guidance (SRA, ablation)"
    times_apart = False
    parts_mixed = True
    masks_given = True

    class Config(MethodConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0}
        space: ClassVar[dict[str, Any]] = {"coefficient": {"low": 0.05, "high": 1.0, "log": True}}

        name: Literal["sra"] = "sra"
        similarity: Literal["smooth_l1", "cosine", "cosine_tokens"] = "smooth_l1"
        """S: smooth-L1, or a cosine over the channels (cosine) or over the tokens (cosine_tokens)."""
        coefficient: float | None = Field(None, ge=0)
        """None: 0.2 for smooth_l1, 0.5 for a cosine."""
        beta: float = Field(0.05, gt=0)
        """Difference at which smooth-L1 becomes linear."""
        offset: float = Field(0.2, ge=0, le=1)
        """Largest difference between the student's time and the teacher's cleaner time."""
        student_layer: int | None = None
        """m: the student layer that is aligned (1-based)."""
        teacher_layer: int | None = None
        """n: the teacher layer that it is aligned to (1-based)."""

        def resolved(self, backbone: BackboneSpec) -> Self:
            early, late = PUBLISHED_LAYERS.get(
                backbone.size, (layer_at(0.25, backbone), layer_at(0.7, backbone))
            )
            filled = {
                "student_layer": check_layer("student_layer", self.student_layer, early, backbone),
                "teacher_layer": check_layer("teacher_layer", self.teacher_layer, late, backbone),
                "coefficient": self.strength,
            }
            return self.model_copy(update=filled)

        @property
        def strength(self) -> float:
            published = 0.2 if self.similarity == "smooth_l1" else 0.5
            return published if self.coefficient is None else self.coefficient

        def needs(self) -> Needs:
            return Needs(teacher=True, taps=taps_of(self.student_layer)) if self.strength else Needs()

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        if config.strength:
            width = setting.backbone.size.width
            self.projector = mlp(width, 2 * width, width)

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        draw = super().draw(streams, batch)
        u = self.config.offset * streams.uniform("teacher_offset", batch.index)
        cleaner = (draw.times.levels[:, 0] - u).clamp(0, 1)
        return Draw(draw.noise, draw.times, extra={"cleaner": cleaner})

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        config, counted = self.config, counted_tokens(batch, self.setting.backbone)
        pair = self.pair(student, batch, draw, prediction)
        return mean_distance(config.similarity, *pair, counted, beta=config.beta)

    def gap(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        """Return S before its mean, with the shape of `distance`."""
        pair = self.pair(student, batch, draw, prediction)
        return distance(self.config.similarity, *pair, beta=self.config.beta)

    def pair(
        self, student: Student, batch: Batch, draw: Draw, prediction: Prediction
    ) -> tuple[Tensor, Tensor]:
        """Return the two arguments of S: the student's projected tokens and the teacher's, both (B, T, D)."""
        backbone, layer = self.setting.backbone, resolved_layer(self.config.teacher_layer)
        times = Times.per_sample(draw.extra["cleaner"])
        x_teacher = interpolate(batch.x0, draw.noise, times, backbone)
        groups = separated(None, batch, backbone)
        target = student.teach(x_teacher, times, batch.y, layer=layer, groups=groups)
        return self.projector(prediction.hidden[resolved_layer(self.config.student_layer)]), target
