"""Settings of methods with one weight, for one layer of the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Self

from harness.config.backbone_spec import BackboneSpec
from harness.config.method_config import MethodConfig, Needs
from methods.common.alignment import check_layer, layer_at, taps_of


class OneLayerConfig(MethodConfig):
    """Base of such settings: a subclass has the fields `coefficient` and `layer`, with its own defaults."""

    published_layer: ClassVar[Mapping[str, int]] = {}
    """The layer by name of a size, where the source has one."""
    share_of_depth: ClassVar[float] = 0.3
    """The layer of other sizes, as a share of their depth."""

    # Declared for type checkers alone, because fields of a base would come before those of a subclass.
    if TYPE_CHECKING:
        coefficient: float
        layer: int | None

    def resolved(self, backbone: BackboneSpec) -> Self:
        default = self.published_layer.get(backbone.size) or layer_at(self.share_of_depth, backbone)
        return self.model_copy(update={"layer": check_layer("layer", self.layer, default, backbone)})

    @property
    def strength(self) -> float:
        return self.coefficient

    def needs(self) -> Needs:
        return Needs(taps=taps_of(self.layer)) if self.coefficient else Needs()
