"""What the methods with frozen encoders share: their spec, the aligned layer, a projector for each, and the
mean over them."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.backbone.sit import Prediction
from harness.config.spec import BackboneSpec
from harness.flow.batch import Batch, Draw
from harness.flow.student import Student
from methods.common.alignment import (
    DINOV2_B,
    EncoderSpec,
    check_layer,
    layer_at,
    mlp,
    resolved_layer,
    taps_of,
)
from methods.common.method import Method, MethodConfig, Needs, Setting

PUBLISHED_LAYER = {"B": 4, "L": 8, "XL": 8}
"""REPA's (its paper's Table 6 has B swapped: author's correction in REPA issue 5); other sizes take 0.3 of
the depth."""


class EncodedConfig(MethodConfig):
    off: ClassVar[dict[str, Any]] = {"coefficient": 0.0}
    space: ClassVar[dict[str, Any]] = {"coefficient": {"low": 0.1, "high": 2.0, "log": True}}

    coefficient: float = Field(0.5, ge=0)
    encoder: EncoderSpec = DINOV2_B
    further: tuple[EncoderSpec, ...] = ()
    """More encoders, aligned with the same layer (REPA train.py `--enc-type A,B`)."""
    layer: int | None = None
    """The student layer that is aligned (1-based)."""

    def resolved(self, backbone: BackboneSpec) -> Self:
        default = PUBLISHED_LAYER.get(backbone.size) or layer_at(0.3, backbone)
        return self.model_copy(update={"layer": check_layer("layer", self.layer, default, backbone)})

    @property
    def strength(self) -> float:
        return self.coefficient

    def needs(self) -> Needs:
        if not self.strength:
            return Needs()
        return Needs(encoders=(self.encoder, *self.further), taps=taps_of(self.layer))


class ProjectedConfig(EncodedConfig):
    projector_width: int = Field(2048, ge=1)
    """Hidden width of the three-layer projector."""


class Encoded(Method):
    """Align one layer with frozen encoders: the mean over them of `compare`, each after its own projector."""

    def __init__(self, config: EncodedConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        if config.coefficient:
            self.projectors = nn.ModuleList(self.projector(dim) for dim in setting.encoder_dims)

    def projector(self, dim: int) -> nn.Module:
        """From the layer's width to an encoder's; REPA's three layers unless a method says otherwise."""
        hidden = self.config.projector_width
        return mlp(self.setting.backbone.size.width, hidden, hidden, dim)

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        hidden = prediction.hidden[resolved_layer(self.config.layer)]
        pairs = zip(self.projectors, batch.views, strict=True)
        return torch.stack([self.compare(projector(hidden), view.tokens) for projector, view in pairs]).mean()

    def compare(self, projected: Tensor, target: Tensor) -> Tensor:
        """How far projected tokens are from an encoder's, both (B, T, dim): a scalar."""
        raise NotImplementedError
