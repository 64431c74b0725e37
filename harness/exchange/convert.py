"""Conversion between released weights and those of a run, in both directions, bit for bit.

A change of the time direction rounds one weight, so its released values are kept with the converted ones.
An export writes them if training has not changed them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.backbone.config import BackboneConfig
from harness.backbone.mmdit import MMDiTConfig
from harness.backbone.released_weights import (
    DATA_AT_ONE,
    HEADS,
    TIME_WEIGHT,
    reverse_time,
    to_our_weights,
    to_released_weights,
)
from harness.errors import UserError
from harness.exchange.layouts import Found

SIGMA = {"sit": True, "self-flow": True}
"""Layouts whose released networks have sigma channels; the others have none."""
PROJECTOR_REQUIRED = ("self-flow", "sra")
"""Layouts whose released networks always have a projector."""


@dataclass(frozen=True)
class Weights:
    """The weights of a run, in our names and convention."""

    network: dict[str, Tensor]
    projectors: dict[str, Tensor] = field(default_factory=dict)
    """Those of the method."""
    released: dict[str, Tensor] = field(default_factory=dict)
    """Released values of weights that conversion rounds."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all of them under the names of a file of a run."""
        parts = {"ema": self.network, "method": self.projectors, "released": self.released}
        return {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}


def to_ours(state: Mapping[str, Tensor], found: Found) -> Weights:
    """Return released weights in our names and convention."""
    network = {name: value for name, value in state.items() if name not in found.projectors}
    try:
        converted = to_our_weights(network, found.layout, found.config)
    except ValueError as error:
        raise UserError(f"these weights do not have layout '{found.layout}': {error}") from error
    projectors = {_our_projector(name): state[name] for name in found.projectors}
    kept = {TIME_WEIGHT: state[TIME_WEIGHT]} if found.layout in DATA_AT_ONE else {}
    return Weights(converted, projectors, kept)


def to_released(
    weights: Weights, config: BackboneConfig, layout: str, *, source: str = ""
) -> dict[str, Tensor]:
    """Return the weights of a run in a released layout, with its projectors.

    `source` is the layout that the run was imported from, if any: then sigma channels are as in that file.
    Raises `UserError` for a network that the layout cannot hold.
    """
    _check_fits(config, layout)
    sigma = config.learn_sigma if source == layout else SIGMA.get(layout, False)
    state = to_released_weights(weights.network, layout, config, sigma=sigma)
    kept = weights.released.get(TIME_WEIGHT)
    if layout in DATA_AT_ONE and kept is not None:
        untouched = torch.equal(reverse_time(kept), weights.network[TIME_WEIGHT])
        state[TIME_WEIGHT] = kept if untouched else state[TIME_WEIGHT]
    heads = {_released_projector(name, layout): value for name, value in weights.projectors.items()}
    heads = {name: value for name, value in heads.items() if name}
    if not heads and layout in PROJECTOR_REQUIRED:
        heads = _zero_head(config.size.width, layout)
    return state | heads


def has_projector(weights: Weights, layout: str) -> bool:
    """Return whether the weights have a projector that a layout has a place for."""
    return any(_released_projector(name, layout) for name in weights.projectors)


def _check_fits(config: BackboneConfig, layout: str) -> None:
    """Raise `UserError` for a network that released code does not have."""
    what = ""
    if config.beside or len(config.shape) != 3:
        what = "samples that are not images"
    elif config.shape[1] != config.shape[2]:
        what = f"samples of {config.shape[1]}x{config.shape[2]}, which are not square"
    elif config.positions != "sincos":
        what = f"backbone.positions = '{config.positions}'"
    elif config.prediction != "velocity":
        what = f"flow.prediction = '{config.prediction}', and released code reads its output as the velocity"
    elif isinstance(config, MMDiTConfig) != (layout == "mmdit"):
        what = "texts as its condition" if isinstance(config, MMDiTConfig) else "labels as its condition"
    elif bool(config.extra) != (layout == "reg"):
        what = "the extra token of REG" if config.extra else "no extra token"
    elif config.features:
        what = f"{config.features} further channels, as method redi adds"
    elif config.outputs:
        layers = " and ".join(map(str, config.outputs))
        what = f"a further final layer at block {layers}, as method internal_guidance adds"
    elif config.fused:
        what = "a fusion of blocks {} to {}, as method sprint adds".format(*config.fused)
    if what:
        raise UserError(f"layout '{layout}' cannot hold this network: it has {what}")


def _zero_head(width: int, layout: str) -> dict[str, Tensor]:
    """Return the projector of a network that was trained without one."""
    start = "projector" if layout == "self-flow" else "ap_head"
    shapes = {"linear1": (2 * width, width), "linear2": (width, 2 * width)}
    head = {f"{start}.{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
    return head | {f"{start}.{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}


def _our_projector(name: str) -> str:
    """Return our name of a weight of a projector.

    REPA's `projectors.0.2.weight` keeps its name, and iREPA's has `projection_layer` in it, whose convolution
    is our `conv`. The head of SRA and Self-Flow has `linear1` and `linear2` in place of 0 and 2.
    """
    if name.startswith("projectors."):
        name = re.sub(r"\.projection_layer\.(?=\d)", ".", name)
        return name.replace(".projection_layer.", ".conv.")
    start = next(head for head in HEADS if name.startswith(head))
    layer, _, leaf = name.removeprefix(start).partition(".")
    return f"projector.{ {'linear1': '0', 'linear2': '2'}.get(layer, layer) }.{leaf}"


def _released_projector(name: str, layout: str) -> str:
    """Return a layout's name of a weight of our projector; empty if the layout has no place for it."""
    if name.startswith("projectors."):
        if layout == "irepa":
            name = name.replace(".conv.", ".projection_layer.")
            return re.sub(r"^(projectors\.\d+)\.(?=\d)", r"\1.projection_layer.", name)
        return name if layout in ("repa", "reg", "mmdit") and ".conv." not in name else ""
    if name.startswith("projector.") and layout in ("sra", "self-flow"):
        layer, _, leaf = name.removeprefix("projector.").partition(".")
        start = "projector" if layout == "self-flow" else "ap_head"
        return f"{start}.{ {'0': 'linear1', '2': 'linear2'}.get(layer, layer) }.{leaf}"
    return ""
