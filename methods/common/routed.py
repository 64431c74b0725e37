"""Settings of methods that let tokens skip blocks in training: the share of tokens, and the blocks."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field

from harness.config.backbone_spec import BackboneSpec
from methods.common.alignment import check_layer, resolved_layer
from methods.common.method import MethodConfig


class RoutedConfig(MethodConfig):
    """Settings of a method whose tokens skip the blocks from `first_layer` to `last_layer`."""

    off: ClassVar[dict[str, Any]] = {"rate": 0.0}

    rate: float = Field(0.5, ge=0, lt=1)
    """Share of a sample's tokens that skip the route; 0 is plain flow matching."""
    first_layer: int | None = None
    """The first block of the route (1-based)."""
    last_layer: int | None = None
    """The last block of the route (1-based)."""

    @staticmethod
    def published_route(depth: int) -> tuple[int, int]:
        """Return the first and the last block of the route (1-based) for a depth."""
        raise NotImplementedError

    def resolved(self, backbone: BackboneSpec) -> Self:
        start, end = self.published_route(backbone.depth)
        first = check_layer("first_layer", self.first_layer, start, backbone)
        last = check_layer("last_layer", self.last_layer, max(end, first), backbone)
        if first > last:
            raise ValueError(f"first_layer = {first}: is after last_layer = {last}; choose an earlier one")
        if self.schedule.warmup or self.schedule.decay != "none":
            raise ValueError(
                f"schedule: {self.name} is on or off, so of its schedule only `until` can be set"
            )
        return self.model_copy(update={"first_layer": first, "last_layer": last})

    @property
    def scheduled(self) -> bool:
        return True

    def routes(self, step: int) -> bool:
        """Return whether tokens skip blocks at a step (1-based)."""
        return bool(self.rate) and self.schedule.factor(step) > 0

    @property
    def blocks(self) -> tuple[int, int]:
        """The first and the last block of the route, which `resolved()` has filled in."""
        return resolved_layer(self.first_layer), resolved_layer(self.last_layer)
