"""Contrastive flow matching (DeltaFM): keep the velocity away from another sample's target.

L = mean || v - (eps - x0) ||^2 - coefficient * mean || v - (eps' - x0') ||^2

Both means have the same weights over parts, so that a coefficient below 1 keeps the loss bounded. eps' and
x0' are those of another sample: here its neighbour in a group of 32 consecutive samples, whose order is
random already. The released code (gstoica27/DeltaFM) draws it from the local batch. A fixed group size gives
the same result on any number of processes.
Defaults: coefficient 0.05.
Cost: an additional mean square; no head, no teacher, no encoder.
Disputed: the DeltaFM paper's own REPA baseline, 27.33, is above the published 24.4 (DeltaFM issue 6).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from harness.backbone.network import Prediction
from harness.flow.batch import Batch, Draw
from harness.flow.path import as_target, velocity_target
from harness.flow.student import Student
from methods.common.alignment import in_groups
from methods.common.method import Method, MethodConfig, Needs, second_velocity_error


class ContrastiveFlow(Method):
    source = "DeltaFM; gstoica27/DeltaFM"
    masks_given = True

    class Config(MethodConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0}
        space: ClassVar[dict[str, Any]] = {"coefficient": {"low": 0.01, "high": 0.2, "log": True}}

        name: Literal["contrastive_flow"] = "contrastive_flow"
        coefficient: float = Field(0.05, ge=0, lt=1)
        """Weight of the contrastive term."""

        group: int = Field(32, ge=2)
        """Number of consecutive samples among which a sample's neighbour is chosen."""

        @property
        def strength(self) -> float:
            return self.coefficient

        def needs(self) -> Needs:
            return Needs(group=self.group) if self.coefficient else Needs()

    config: Config

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        target = in_groups(velocity_target(batch.x0, draw.noise), self.config.group)
        other = target.roll(1, dims=1).flatten(0, 1)
        other = as_target(other, draw.times, self.setting.backbone)
        return -second_velocity_error(prediction.velocity, other, batch, draw, self.setting)
