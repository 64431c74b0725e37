"""Self-Flow: dual-timestep scheduling with an EMA self-teacher (Chefer, Esser et al., arXiv 2603.06507).

    t, s ~ p(t) per sample, not sorted        M_i = [u_i < R_M] per token (Bernoulli, not an exact count)
    tau_i = s where M_i, else t               x_tau = (1 - tau) x0 + tau eps
    L = L_gen + gamma * mean over all tokens of (1 - cos( P(h_l(x_tau, tau)), h'_k(x_min, min(t, s)) ))

Equations 2 to 7. The teacher h' is the EMA network on homogeneous noise at the cleaner of the two times, with
the same eps and the same label after label drop; its pass ends at layer k. P is Linear-SiLU-Linear (released
`SimpleHead`).
Defaults: gamma 0.8, R_M 0.25, l = 0.3 D, k = 0.7 D (8 and 20 of 28, 4 and 8 of 12).
Cost: a forward pass through 0.7 of the depth without gradient.

Disputed settings, in addition to those of methods/common/dual_timesteps.py:
`align_on`: the loss on masked tokens only, as in a third-party port. Here it is the mean over each sample's
masked tokens, so that it does not depend on how a batch is divided.
`teacher_time`: "min" as published; with "same" the teacher has the student's mixture of times.
`similarity`: the paper reports that l1 becomes unstable later in training.
`mask_ratio = 0`: the paper's "without masking", with the student at t and the teacher at min(t, s), which the
paper does not spell out.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor

from harness.backbone.network import Prediction
from harness.config.backbone_spec import BackboneSpec
from harness.flow.batch import Batch, Draw
from harness.flow.path import interpolate, times_of_parts
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.common.alignment import check_layer, distance, layer_at, mlp, resolved_layer, taps_of
from methods.common.dual_timesteps import DualConfig, draw_dual
from methods.common.given_tokens import counted_tokens
from methods.common.method import Method, Needs, Setting
from methods.common.missing_parts import mean_of_tokens, separated


class SelfFlow(Method):
    source = "Self-Flow, arXiv 2603.06507; black-forest-labs/Self-Flow 53db4f0"
    headline = "SiT-XL/2 FID 5.70 at 4M steps, SDE, no guidance (Self-Flow Table 1)"
    parts_mixed = True
    masks_given = True

    class Config(DualConfig):
        off: ClassVar[dict[str, Any]] = {"gamma": 0.0, "mask_ratio": 0.0}
        space: ClassVar[dict[str, Any]] = {
            "gamma": {"low": 0.2, "high": 2.0, "log": True},
            "mask_ratio": {"low": 0.05, "high": 0.5},
        }

        name: Literal["self_flow"] = "self_flow"
        gamma: float = Field(0.8, ge=0)
        """Weight of the alignment term."""
        student_layer: int | None = None
        """l: the student layer that is aligned (1-based)."""
        teacher_layer: int | None = None
        """k: the teacher layer that it is aligned to (1-based)."""
        similarity: Literal["cosine", "l1", "smooth_l1"] = "cosine"
        """Similarity of the two layers; the paper reports that l1 becomes unstable."""
        align_on: Literal["all", "masked"] = "all"
        """Tokens that are aligned: all, or those with the second time."""
        teacher_time: Literal["min", "same"] = "min"
        """min: the teacher has the cleaner of the two times; same: the student's mixture of times."""

        def resolved(self, backbone: BackboneSpec) -> Self:
            student = check_layer("student_layer", self.student_layer, layer_at(0.3, backbone), backbone)
            teacher = check_layer("teacher_layer", self.teacher_layer, layer_at(0.7, backbone), backbone)
            return self.model_copy(update={"student_layer": student, "teacher_layer": teacher})

        @property
        def strength(self) -> float:
            return self.gamma

        def needs(self) -> Needs:
            taps = taps_of(self.student_layer) if self.gamma else ()
            return Needs(teacher=bool(self.gamma), times=2 if self.masks else 1, taps=taps)

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        if config.gamma:
            width = setting.backbone.size.width
            self.projector = mlp(width, 2 * width, width)

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        return draw_dual(self.config, self.setting, streams, batch)

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        cleaner = draw.extra["cleaner"]
        times = (
            times_of_parts(cleaner, self.setting.backbone)
            if self.config.teacher_time == "min"
            else draw.times
        )
        x_teacher = interpolate(batch.x0, draw.noise, times, self.setting.backbone)
        backbone, layer = self.setting.backbone, resolved_layer(self.config.teacher_layer)
        groups, counted = separated(None, batch, backbone), counted_tokens(batch, backbone)
        target = student.teach(x_teacher, times, batch.y, layer=layer, groups=groups)
        projected = self.projector(prediction.hidden[resolved_layer(self.config.student_layer)])
        gap = distance(self.config.similarity, projected, target)
        if self.config.align_on == "all" or draw.times.which is None:
            return mean_of_tokens(gap, counted)
        masked = draw.times.which.long() >= cleaner.shape[1]
        return mean_of_tokens(gap, masked if counted is None else masked & counted)
