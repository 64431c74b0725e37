"""Contrastive flow matching (DeltaFM): keep the velocity away from another sample's target (gstoica27/DeltaFM).

L = mean || v - (eps - x0) ||^2 - coefficient * mean || v - (eps' - x0') ||^2,

where eps' and x0' are another sample's of the same micro-batch: here its neighbour, in a batch whose order is random already.
Defaults: coefficient 0.05. With one sample in a micro-batch there is no other, and the term is refused.
Cost: one more mean square; no head, no teacher, no encoder.
Disputed: the DeltaFM paper's own REPA baseline, 27.33, is above the published 24.4 (DeltaFM issue 6).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from harness.backbone.sit import Prediction
from harness.backbone.student import Student
from harness.batch import Batch, Draw
from harness.path import velocity_target
from methods.method import Method, MethodConfig


class ContrastiveFlow(Method):
    source = "DeltaFM; gstoica27/DeltaFM"

    class Config(MethodConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0}

        name: Literal["contrastive_flow"] = "contrastive_flow"
        coefficient: float = Field(0.05, ge=0, lt=1)

        @property
        def strength(self) -> float:
            return self.coefficient

    config: Config

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        if len(batch.x0) < 2:
            raise ValueError("contrastive_flow needs two samples in a micro-batch; raise train.batch_size")
        other = velocity_target(batch.x0, draw.noise).roll(1, dims=0)
        return -(prediction.velocity.float() - other).square().mean()
