"""What the methods with a frozen encoder share: its spec, the aligned layer, and a weight."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field

from harness.spec import BackboneSpec
from methods.align import DINOV2_B, EncoderSpec, check_layer, layer_at
from methods.method import MethodConfig, Needs

PUBLISHED_LAYER = {"B": 4, "L": 8, "XL": 8}
"""REPA's (its paper's Table 6 has B swapped: author's correction in REPA issue 5); other sizes take 0.3 of the depth."""


class EncodedConfig(MethodConfig):
    off: ClassVar[dict[str, Any]] = {"coefficient": 0.0}

    coefficient: float = Field(0.5, ge=0)
    encoder: EncoderSpec = DINOV2_B
    layer: int | None = None
    """The student layer that is aligned (1-based)."""

    def resolved(self, backbone: BackboneSpec) -> Self:
        default = PUBLISHED_LAYER.get(backbone.size) or layer_at(0.3, backbone)
        return self.model_copy(update={"layer": check_layer("layer", self.layer, default, backbone)})

    @property
    def strength(self) -> float:
        return self.coefficient

    def needs(self) -> Needs:
        return Needs(encoder=self.encoder, taps=(self.layer,)) if self.coefficient else Needs()
