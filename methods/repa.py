"""REPA: align an early layer with a frozen encoder's tokens (Yu et al., arXiv 2410.06940; loss.py at 67f7145).

L = L_gen + coefficient * mean_{samples, tokens} -cos( P(h_l), z ),    z = encoder(x0),  P = Linear-SiLU-Linear-SiLU-Linear.

Defaults as released: coefficient 0.5, projector width 2048, layer 4 for B, 8 for L and XL; DINOv2-B.
Cost: the encoder's forward pass (online); nothing of the backbone runs twice.
Disputed: the logged value is -cos in [-1, 1], where Self-Flow logs 1 - cos; the gradient is the same. NT-Xent in place of the
cosine makes little difference (10.0 against 9.9, Table 2).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from harness.backbone.sit import Prediction
from harness.backbone.student import Student
from harness.batch import Batch, Draw
from methods.align import apart, cosine, mlp
from methods.encoded import EncodedConfig
from methods.method import Method, Setting


class Repa(Method):
    source = "REPA, arXiv 2410.06940; sihyun-yu/REPA 67f7145"
    headline = "SiT-XL/2 FID 7.9 at 400k steps, SDE, no guidance (REPA Table 3)"

    class Config(EncodedConfig):
        name: Literal["repa"] = "repa"
        projector_width: int = Field(2048, ge=1)
        similarity: Literal["cosine", "nt_xent"] = "cosine"

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        if config.coefficient:
            hidden = config.projector_width
            self.projector = mlp(setting.backbone.size.width, hidden, hidden, setting.encoder_dim)

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        projected = self.projector(prediction.hidden[self.config.layer])
        if self.config.similarity == "nt_xent":
            return apart("nt_xent", projected, batch.features).mean()
        return -cosine(projected, batch.features).mean()
