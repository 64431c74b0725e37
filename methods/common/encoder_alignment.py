"""The base of methods with frozen encoders: an aligned layer, a projector per encoder, the mean over
encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from harness.backbone.network import Prediction
from harness.flow.batch import Batch, Draw
from harness.flow.student import Student
from methods.common.alignment import (
    DINOV2_B,
    EncoderSpec,
    mlp,
    resolved_layer,
    taps_of,
)
from methods.common.given_tokens import generated_only
from methods.common.method import Method, Needs, Setting
from methods.common.one_layer import OneLayerConfig

PUBLISHED_LAYER = {"B": 4, "L": 8, "XL": 8, "T2I": 8}
"""REPA's layers. Its paper's Table 6 has B swapped, as the author confirms in REPA issue 5. Other sizes use
0.3 of the depth."""


class EncodedConfig(OneLayerConfig):
    """Settings of a method with frozen encoders."""

    published_layer: ClassVar = PUBLISHED_LAYER
    off: ClassVar[dict[str, Any]] = {"coefficient": 0.0}
    space: ClassVar[dict[str, Any]] = {"coefficient": {"low": 0.1, "high": 2.0, "log": True}}

    coefficient: float = Field(0.5, ge=0)
    """Weight of the alignment term."""
    encoder: EncoderSpec = DINOV2_B
    further: tuple[EncoderSpec, ...] = ()
    """More encoders, aligned with the same layer (REPA train.py `--enc-type A,B`)."""
    layer: int | None = None
    """The student layer that is aligned (1-based)."""

    # Any: a raw table, or an encoder.
    @field_validator("encoder", mode="before")
    @classmethod
    def _has_the_default_name(cls, encoder: Any) -> Any:
        """Fill in the name, so that `encoder.download = true` alone applies to the default encoder."""
        return {"name": DINOV2_B.name, **encoder} if isinstance(encoder, Mapping) else encoder

    def needs(self) -> Needs:
        if not self.strength:
            return Needs()
        return Needs(encoders=(self.encoder, *self.further), taps=taps_of(self.layer))


class ProjectedConfig(EncodedConfig):
    """Settings of a method with REPA's projector."""

    projector_width: int = Field(2048, ge=1)
    """Hidden width of the three-layer projector."""


class Encoded(Method):
    """Alignment of one layer with frozen encoders: the mean of `compare`, each with its own projector."""

    masks_given = True

    def __init__(self, config: EncodedConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        if config.coefficient:
            self.projectors = nn.ModuleList(self.projector(dim) for dim in setting.encoder_dims)

    def projector(self, dim: int) -> nn.Module:
        """Return a network from the layer's width to an encoder's, by default REPA's three layers."""
        hidden = self.config.projector_width
        return mlp(self.setting.backbone.size.width, hidden, hidden, dim)

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        layer = resolved_layer(self.config.layer)
        hidden, targets = prediction.hidden[layer], [view.tokens for view in batch.views]
        if draw.route is not None and draw.route.covers(layer):
            # Tokens that skip the layer have no output of it to align, as in SPRINT's release.
            hidden, targets = draw.route.taken(hidden), [draw.route.taken(tokens) for tokens in targets]
        backbone = self.setting.backbone
        pairs = [
            (generated_only(projector(hidden), backbone), generated_only(target, backbone))
            for projector, target in zip(self.projectors, targets, strict=True)
        ]
        return torch.stack([self.compare(*pair) for pair in pairs]).mean()

    def compare(self, projected: Tensor, target: Tensor) -> Tensor:
        """Return the distance of projected tokens from an encoder's, both (B, T, dim), as a scalar."""
        raise NotImplementedError
