"""Released weights for the tests: golden files, and random weights in layouts without one."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.backbone.sizes import Size
from harness.exchange.layouts import Found, find_layout, network_shapes

# Layout -> golden file, and whether names alone determine the layout.
FILES = {
    "sit": ("sit_forward", False),
    "repa": ("repa_loss", True),
    "sra": ("sra_loss", True),
    "self-flow": ("self_flow_step", True),
}
OF_TEXT = {"mmdit": ("mmdit_repa_loss", True)}
"""Likewise for networks that are conditioned on text, into which no network of labels can be exported."""
SIZE = Size(2, 32, 4)


def released(
    layout: str, *, shape: tuple[int, ...] = (4, 8, 8), extra: int = 12
) -> tuple[dict[str, Tensor], Found]:
    """Return random weights in a layout without a golden file; `extra` is the width of REG's token."""
    found = Found(layout, SIZE, 2, shape, 10, False, extra if layout == "reg" else 0, ())
    draws = torch.Generator().manual_seed(1)
    state = {name: torch.randn(shape, generator=draws) / 5 for name, shape in network_shapes(found).items()}
    if layout == "reg":
        state["pos_embed"][:, 0] = 0
    conv, mlp = "projectors.0.projection_layer", [f"projectors.0.{place}" for place in (0, 2, 4)]
    heads = {
        "irepa": {f"{conv}.weight": (16, 32, 3, 3), f"{conv}.bias": (16,)},
        "reg": {f"{name}.weight": (16, 32) for name in mlp} | {f"{name}.bias": (16,) for name in mlp},
    }.get(layout, {})
    state |= {name: torch.randn(shape, generator=draws) for name, shape in heads.items()}
    return state, find_layout(state, layout, heads=4)
