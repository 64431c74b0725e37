"""SRA 2 (VAE-REPA): align an early layer with the clean latent itself (arXiv 2601.17830).

L = L_gen + coefficient * mean smooth_l1_beta( P(h_l), patchify(x0) ),    P a five-layer MLP.

It is the control for the question whether any auxiliary target helps.
Defaults: layer 2 for B, 8 for L and XL (otherwise 0.2 of the depth), beta 0.05, coefficient 1.0. P has width
1440, which gives the published size of about 8M parameters; the width itself is not published. On pixels the
target is the image.
Cost: the projector; no encoder, no teacher.
Disputed: no official code was found; layers and weight come from secondary notes.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from harness.backbone.network import Prediction
from harness.backbone.tokens import patchify
from harness.flow.batch import Batch, Draw
from harness.flow.student import Student
from methods.common.alignment import distance, mlp, resolved_layer
from methods.common.given_tokens import generated_only
from methods.common.method import Method, Setting
from methods.common.one_layer import OneLayerConfig

PUBLISHED_LAYER = {"B": 2, "L": 8, "XL": 8}


class Sra2(Method):
    source = "SRA 2 / VAE-REPA, arXiv 2601.17830"
    headline = "SiT-B/2 FID 28.9 at 400k steps (secondary note on SRA 2)"
    # The projector predicts patches of a single size.
    parts_apart = False
    masks_given = True

    class Config(OneLayerConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0}
        published_layer: ClassVar = PUBLISHED_LAYER
        share_of_depth: ClassVar[float] = 0.2
        space: ClassVar[dict[str, Any]] = {"coefficient": {"low": 0.2, "high": 4.0, "log": True}}

        name: Literal["sra2"] = "sra2"
        coefficient: float = Field(1.0, ge=0)
        """Weight of the alignment term."""
        similarity: Literal["smooth_l1", "cosine"] = "smooth_l1"
        """Smooth-L1 as published, or a cosine over the channels."""
        beta: float = Field(0.05, gt=0)
        """Difference at which smooth-L1 becomes linear."""
        layer: int | None = None
        """The layer that is aligned (1-based)."""
        projector_width: int = Field(1440, ge=1)
        """Width of the projector's hidden layers."""
        projector_layers: int = Field(5, ge=1)
        """Number of linear layers of the projector."""

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        if config.coefficient:
            backbone = setting.backbone
            hidden = [config.projector_width] * (config.projector_layers - 1)
            self.projector = mlp(backbone.size.width, *hidden, backbone.parts[0].token_values)

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        projected = self.projector(prediction.hidden[resolved_layer(self.config.layer)])
        target = patchify(batch.x0, self.setting.backbone.parts[0].patch)
        pair = (generated_only(tokens, self.setting.backbone) for tokens in (projected, target))
        return distance(self.config.similarity, *pair, beta=self.config.beta).mean()
