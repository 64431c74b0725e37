"""Self-Flow: dual-timestep scheduling with an EMA self-teacher (Chefer, Esser et al., arXiv 2603.06507, Eq. 2-7).

    t, s ~ p(t) per sample, not sorted        M_i = [u_i < R_M] per token (Bernoulli, not an exact count)
    tau_i = s where M_i, else t                x_tau = (1 - tau) x0 + tau eps
    L = mean || v - (eps - x0) ||^2 + gamma mean over all tokens of (1 - cos( P(h_l(x_tau, tau)), h'_k(x_min, min(t, s)) ))

The teacher h' is the EMA network on homogeneous noise at the cleaner of the two times, with the same eps and the same
(already dropped) label; its pass ends at layer k. P is Linear-SiLU-Linear (released `SimpleHead`).
Defaults: gamma 0.8, R_M 0.25, l = 0.3 D, k = 0.7 D (8 and 20 of 28, 4 and 8 of 12).
Cost: a forward pass of 0.7 of the depth without gradient.

Disputed, each a named setting: sorted times (arXiv 2607.02508 Eq. 5, not the paper's), exact-count masks (the code of
2607.02508), the loss on masked tokens only (a third-party port), the teacher's time ("min" as published; "same" gives it the
student's own mixture).
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from harness.backbone.student import Student
from harness.backbone.times import Times
from harness.batch import Batch, Draw
from harness.draws import Streams
from harness.path import interpolate, sample_times
from harness.spec import BackboneSpec
from methods.align import check_layer, cosine, layer_at, mlp2
from methods.method import Losses, Method, MethodConfig, Needs, Setting, flow_loss


class SelfFlow(Method):
    class Config(MethodConfig):
        name: Literal["self_flow"] = "self_flow"
        gamma: float = Field(0.8, ge=0)
        mask_ratio: float = Field(0.25, ge=0, le=0.5)
        student_layer: int | None = None
        teacher_layer: int | None = None
        order: Literal["unsorted", "sorted"] = "unsorted"
        """sorted: masked tokens take the noisier of the two times."""
        mask: Literal["bernoulli", "exact"] = "bernoulli"
        align_on: Literal["all", "masked"] = "all"
        teacher_time: Literal["min", "same"] = "min"

        def resolved(self, backbone: BackboneSpec) -> Self:
            student = check_layer("student_layer", self.student_layer, layer_at(0.3, backbone), backbone)
            teacher = check_layer("teacher_layer", self.teacher_layer, layer_at(0.7, backbone), backbone)
            return self.model_copy(update={"student_layer": student, "teacher_layer": teacher})

        @property
        def strength(self) -> float:
            return self.gamma

        def needs(self) -> Needs:
            taps = (self.student_layer,) if self.gamma else ()
            return Needs(teacher=bool(self.gamma), times=2 if self.mask_ratio else 1, taps=taps)

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        if config.gamma:
            self.projector = mlp2(setting.backbone.size.width)

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        draw = super().draw(streams, batch)
        t = draw.times.levels[:, 0]
        s = sample_times(self.setting.time, streams, "second_time", batch.index)
        if self.config.order == "sorted":
            t, s = torch.minimum(t, s), torch.maximum(t, s)
        if not self.config.mask_ratio:  # an empty mask: all tokens have time t
            return Draw(draw.noise, Times.per_sample(t), {"cleaner": torch.minimum(t, s)})
        u = streams.uniform("mask", batch.index, (self.setting.backbone.tokens,))
        return Draw(draw.noise, Times.dual(t, s, self._mask(u)), {"cleaner": torch.minimum(t, s)})

    def loss(self, student: Student, batch: Batch, draw: Draw) -> Losses:
        weight, patch = self.config.weight(batch.step), student.config.patch
        x_tau = interpolate(batch.x0, draw.noise, draw.times, patch)
        prediction = student(x_tau, draw.times, batch.y, taps=(self.config.student_layer,) if weight else ())
        flow = flow_loss(prediction.velocity, batch, draw)
        if not weight:
            return Losses(flow, {"flow": flow})
        same = self.config.teacher_time == "same"
        times = draw.times if same else Times.per_sample(draw.extra["cleaner"])
        x_teacher = x_tau if same else interpolate(batch.x0, draw.noise, times, patch)
        target = student.teach(x_teacher, times, batch.y, layer=self.config.teacher_layer)
        apart = 1 - cosine(self.projector(prediction.hidden[self.config.student_layer]), target)
        align = self._mean(apart, draw.times.which)
        return Losses(flow + weight * align, {"flow": flow, "align": align})

    def _mask(self, u: Tensor) -> Tensor:
        """(B, T) uniform draws -> which tokens take the second time."""
        if self.config.mask == "bernoulli":
            return u < self.config.mask_ratio
        count = int(self.config.mask_ratio * u.shape[1])
        return u.argsort(dim=1).argsort(dim=1) < count

    def _mean(self, apart: Tensor, mask: Tensor | None) -> Tensor:
        if self.config.align_on == "all" or mask is None:
            return apart.mean()
        return (apart * mask).sum() / mask.sum().clamp(min=1)
