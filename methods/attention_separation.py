"""Attention separation: two groups of tokens with separate times and separate attention (arXiv 2607.02508).

    M_i     the minority group, R_M of the tokens of a sample
    A_ij  = [M_i = M_j] in every block (block-diagonal attention)
    tau_i = s where M_i, else t (dual); or t for all
    L     = L_gen + coefficient * mean (1 - cos( P(h_l), h'_k )),    P = Linear-SiLU-Linear

With probability rho (`whole`), a sample is not divided: one time, full attention.
Teacher h': as released (`teacher = "mixed"`), the same two groups with separate attention, each at its time
minus u ~ U(0, 0.2). With `"clean"`, homogeneous noise at the cleaner time, full attention, as in Self-Flow.
Defaults: those of the released training script (vvvvvjdy/SRA 1723f85, SiT-SRA_DTS_AS). Groups have an exact
count of 0.25, times are unsorted, the coefficient is 0.5, the teacher is "mixed" and its labels are not
dropped. The cosine is over tokens (torch's default dim=1). Layers are 3 -> 8 for B, 8 -> 20 for XL, and
SRA's 6 -> 16 for L.
Cost: a forward pass to layer k without gradient, and masked attention.
Disputed: the paper's Eq. 5 sorts the times, its code does not (`order`). Its Eq. 3 is the cosine over
channels (`similarity`). It does not state which teacher its Tables 1 and 2 used. Four of its variants are the
combinations of `dual` and `separate` here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from harness.backbone.network import Prediction
from harness.backbone.times import Times
from harness.config.backbone_spec import BackboneSpec
from harness.flow.batch import Batch, Draw
from harness.flow.path import interpolate
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.common.alignment import check_layer, layer_at, mean_distance, mlp, resolved_layer, taps_of
from methods.common.dual_timesteps import DualConfig, draw_mask, draw_times
from methods.common.method import Method, Needs, Setting
from methods.common.missing_parts import present_tokens, separated
from methods.sra import PUBLISHED_LAYERS


class AttentionSeparation(Method):
    source = "From SRA to Self-Flow, arXiv 2607.02508; vvvvvjdy/SRA 1723f85"
    headline = "SiT-B/2 FID-10K 29.89 against 30.20 with full attention at 400k steps (its Table 1)"
    times_apart = False
    parts_mixed = True
    # A group could not attend to the given tokens of the other one.
    masks_given = False

    class Config(DualConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0, "mask_ratio": 0.0}
        space: ClassVar[dict[str, Any]] = {"coefficient": {"low": 0.1, "high": 2.0, "log": True}}

        name: Literal["attention_separation"] = "attention_separation"
        coefficient: float = Field(0.5, ge=0)
        """Weight of the alignment term."""
        similarity: Literal["cosine_tokens", "cosine"] = "cosine_tokens"
        """Cosine over the tokens, as released, or over the channels."""
        mask: Literal["bernoulli", "exact"] = "exact"
        dual: bool = True
        """Two times per sample; otherwise the groups share one time."""
        separate: bool = True
        """Attention within groups; otherwise full attention."""
        whole: float = Field(0.0, ge=0, le=1)
        """rho: probability that a sample is not divided into groups."""
        teacher: Literal["mixed", "clean"] = "mixed"
        """mixed: the same two groups, each at a cleaner time; clean: one cleaner time, full attention."""
        teacher_labels: Literal["undropped", "shared"] = "undropped"
        """Labels of the teacher: all of them, or those that label drop leaves to the student."""
        student_layer: int | None = None
        """The student layer that is aligned (1-based)."""
        teacher_layer: int | None = None
        """The teacher layer that it is aligned to (1-based)."""

        def resolved(self, backbone: BackboneSpec) -> Self:
            early, late = PUBLISHED_LAYERS.get(
                backbone.size, (layer_at(0.25, backbone), layer_at(0.7, backbone))
            )
            student = check_layer("student_layer", self.student_layer, early, backbone)
            teacher = check_layer("teacher_layer", self.teacher_layer, late, backbone)
            if self.coefficient and self.separate and not self.mask_ratio:
                raise ValueError(
                    "separate = true: with mask_ratio = 0 every sample is one group; raise mask_ratio (at "
                    "most 0.5), or set separate = false"
                )
            return self.model_copy(update={"student_layer": student, "teacher_layer": teacher})

        @property
        def strength(self) -> float:
            return self.coefficient

        def needs(self) -> Needs:
            levels = 2 if self.dual and self.mask_ratio else 1
            if not self.coefficient:
                return Needs(times=levels)
            undropped = self.teacher_labels == "undropped"
            return Needs(teacher=True, times=levels, taps=taps_of(self.student_layer), undropped=undropped)

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        if config.coefficient:
            width = setting.backbone.size.width
            self.projector = mlp(width, 2 * width, width)

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        config, index = self.config, batch.index
        t, s = (times[:, 0] for times in draw_times(config, self.setting, streams, index))
        offset = 0.2 * streams.uniform("teacher_offset", index, (2,))
        noise = streams.normal("noise", index, batch.x0.shape[1:])
        if not config.mask_ratio:
            cleaner = (t - offset[:, 0]).clamp(min=0)
            return Draw(noise, Times.per_sample(t), extra={"cleaner": cleaner[:, None]})
        undivided = streams.uniform("whole", index) < config.whole
        mask = draw_mask(config, self.setting, streams, index) & ~undivided[:, None]
        drawn = (t, s) if config.dual else (t, t)
        ordered = config.in_order(*drawn)
        first, second = (torch.where(undivided, a, b) for a, b in zip(drawn, ordered, strict=True))
        times = Times.dual(first, second, mask) if config.dual else Times.per_sample(t)
        cleaner = (torch.stack([first, second], dim=1) - offset).clamp(min=0)
        extra = {"cleaner": cleaner} if config.dual else {"cleaner": cleaner, "mask": mask}
        return Draw(noise, times, mask.long() if config.separate else None, extra)

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        times, groups = self._teacher_view(draw)
        x_teacher = interpolate(batch.x0, draw.noise, times, self.setting.backbone)
        y = batch.undropped if self.config.teacher_labels == "undropped" else batch.y
        backbone, layer = self.setting.backbone, resolved_layer(self.config.teacher_layer)
        groups = separated(groups, batch, backbone)
        target = student.teach(x_teacher, times, y, layer=layer, groups=groups)
        projected = self.projector(prediction.hidden[resolved_layer(self.config.student_layer)])
        return mean_distance(self.config.similarity, projected, target, present_tokens(batch, backbone))

    def _teacher_view(self, draw: Draw) -> tuple[Times, Tensor | None]:
        """Return times and groups of the teacher's pass."""
        if self.config.teacher == "clean":
            return Times.per_sample(draw.times.levels.amin(dim=1)), None
        which = draw.extra.get("mask", draw.times.which)
        return Times(draw.extra["cleaner"], which), draw.groups
