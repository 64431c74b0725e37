"""Plain flow matching: the baseline of every race.

L = mean || v_theta(x_t, t, y) - (eps - x0) ||^2,    x_t = (1 - t) x0 + t eps,    t ~ p(t) per sample.

Source: SiT (arXiv 2401.08740) with the linear path and velocity prediction; REPA loss.py without its projection term.
Cost: one forward and one backward pass.
"""

from __future__ import annotations

from typing import Literal, Self

from harness.backbone.student import Student
from harness.batch import Batch, Draw
from harness.path import interpolate
from harness.spec import BackboneSpec
from methods.method import Losses, Method, MethodConfig, Schedule, flow_loss


class Flow(Method):
    class Config(MethodConfig):
        name: Literal["flow"] = "flow"

        def resolved(self, backbone: BackboneSpec) -> Self:
            if self.schedule != Schedule():
                raise ValueError("schedule: flow aligns nothing, so there is nothing to schedule")
            return self

    def loss(self, student: Student, batch: Batch, draw: Draw) -> Losses:
        x_t = interpolate(batch.x0, draw.noise, draw.times, student.config.patch)
        flow = flow_loss(student(x_t, draw.times, batch.y).velocity, batch, draw)
        return Losses(flow, {"flow": flow})
