"""The structural part of SARA: align the autocorrelation matrix of the tokens with an encoder's (arXiv 2503.08253).

L = L_gen + coefficient * mean_{samples, i, j} ( R(P(h_l))_ij - R(z)_ij )^2,    R(x)_ij = cos(x_i, x_j),  P as REPA's.

Taken alone: SARA adds it to REPA's patch cosine and to an adversarial term, which needs an optimizer of its own and is not here.
Its weight is not in the abstract; 0.5 is REPA's.
Cost: the encoder's forward pass, the projector, and T x T products of two feature sets.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from harness.backbone.sit import Prediction
from harness.backbone.student import Student
from harness.batch import Batch, Draw
from methods.align import mlp, relations
from methods.encoded import EncodedConfig
from methods.method import Method, Setting


class Gram(Method):
    source = "SARA, arXiv 2503.08253"
    headline = "FID 1.36 with guidance, all three of SARA's terms (SARA abstract)"

    class Config(EncodedConfig):
        name: Literal["gram"] = "gram"
        projector_width: int = Field(2048, ge=1)

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        if config.coefficient:
            hidden = config.projector_width
            self.projector = mlp(setting.backbone.size.width, hidden, hidden, setting.encoder_dim)

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        projected = self.projector(prediction.hidden[self.config.layer])
        return (relations(projected) - relations(batch.features)).square().mean()
