"""What alignment methods share: projectors, similarities, and the rule for layers.

Similarities run in float32 whatever the autocast type (half-precision normalisation gives NaN: REPA issue 46).
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from harness.spec import NOT_HASHED, BackboneSpec


class EncoderSpec(BaseModel):
    """A frozen encoder by name, as `timm:vit_base_patch14_dinov2.lvd142m`, `local:small` or `random:small`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    weights: str = Field("", json_schema_extra=NOT_HASHED)
    """A file on disk; what is in it is told by sha256."""
    sha256: str = ""
    download: bool = Field(False, json_schema_extra=NOT_HASHED)
    """Let the hub be asked for the weights; nothing is downloaded otherwise."""


def mlp3(width: int, hidden: int, out: int) -> nn.Sequential:
    """REPA's projector: Linear-SiLU-Linear-SiLU-Linear (models/sit.py `build_mlp`)."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out)
    )


def mlp2(width: int) -> nn.Sequential:
    """Self-Flow's and SRA's head: Linear(D, 2D)-SiLU-Linear(2D, D) (`SimpleHead`)."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over channels for each token, float32; a, b: (B, T, D) -> (B, T)."""
    return F.cosine_similarity(a.float(), b.float(), dim=-1)


def layer_at(fraction: float, backbone: BackboneSpec) -> int:
    """The layer nearest to a fraction of the depth, 1-based: 0.3 of 28 is 8, of 12 is 4 (Self-Flow section 4)."""
    return max(1, round(fraction * backbone.depth))


def check_layer(field: str, layer: int | None, default: int, backbone: BackboneSpec) -> int:
    """The layer, or the default where none is given; raises ValueError when the backbone has no such layer."""
    if layer is None:
        return default
    if not 1 <= layer <= backbone.depth:
        raise ValueError(f"{field} = {layer}: backbone {backbone.size} has layers 1 to {backbone.depth}")
    return layer
