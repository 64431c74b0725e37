"""Building blocks of alignment terms: projectors, similarities, target transforms, and checks of layers.

Similarities are computed in float32 under any autocast type, because normalisation in half precision can give
NaN (REPA issue 46).

    B  samples    T  tokens    D  channels
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from harness.config.backbone_spec import BackboneSpec
from harness.config.encoder_fields import located
from harness.config.section import HASHED_IF_SET, NOT_HASHED
from harness.runtime.precision import product
from methods.common.missing_parts import mean_of_tokens

Similarity = Literal["cosine", "cosine_tokens", "smooth_l1", "l1", "nt_xent"]


class EncoderSpec(BaseModel):
    """A frozen encoder by name, for example `timm:vit_base_patch14_dinov2.lvd142m` or `local:small`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    """`family:model`, see `flowrace list encoders`."""
    weights: str = Field(default="", json_schema_extra=NOT_HASHED)
    """A file with weights, or the folder of a run."""
    sha256: str = ""
    """Expected checksum of the weights; empty accepts any."""
    content: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Hash of the file in `weights`, filled in if it exists: the run id depends on it, not on the path."""
    download: bool = Field(default=False, json_schema_extra=NOT_HASHED)
    """Allow downloading the weights from the hub; by default nothing is downloaded."""

    # Any: a raw table.
    @model_validator(mode="before")
    @classmethod
    def _name_has_no_path(cls, table: Any) -> Any:
        """Move the folder of `run:PATH` to `weights`, so that the run id does not depend on it."""
        if not isinstance(table, Mapping):
            return table
        name, weights = table.get("name"), table.get("weights", "")
        if not isinstance(name, str) or not isinstance(weights, str):
            return table
        name, weights = located(name, weights)
        return {**table, "name": name, **({"weights": weights} if weights else {})}


DINOV2_B = EncoderSpec(name="timm:vit_base_patch14_dinov2.lvd142m")


def mlp(*widths: int) -> nn.Sequential:
    """Return linear layers of these widths with SiLU between them.

    REPA's projector is mlp(D, 2048, 2048, z) (models/sit.py `build_mlp`). The head of Self-Flow and SRA is
    mlp(D, 2D, D) (`SimpleHead`).
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class ConvProjector(nn.Module):
    """One convolution over the token grid, including time, with same padding (iREPA).

    Tokens (B, T, D) become (B, T, out).
    """

    def __init__(self, width: int, out: int, kernel: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.grid = grid
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(grid) - 1]
        self.conv = convolution(width, out, kernel, padding="same")

    def forward(self, tokens: Tensor) -> Tensor:
        maps = tokens.transpose(1, 2).unflatten(2, self.grid)
        return self.conv(maps).flatten(2).transpose(1, 2)


def cosine(a: Tensor, b: Tensor, dim: int = -1) -> Tensor:
    """Return the float32 cosine of a and b, (B, T, D).

    dim -1 is over channels and gives (B, T). dim 1 is over tokens and gives (B, D), as in SRA's release.
    """
    return F.cosine_similarity(a.float(), b.float(), dim=dim)


def distance(
    kind: Similarity, a: Tensor, b: Tensor, *, beta: float = 0.05, temperature: float = 0.1
) -> Tensor:
    """Return the distance of two token sets, unreduced; a, b: (B, T, D).

    cosine          1 - cos over channels, (B, T)
    cosine_tokens   1 - cos over tokens, (B, D)
    smooth_l1, l1   elementwise, (B, T, D)
    nt_xent         cross-entropy of a token against all tokens of its sample, (B, T)
    """
    a, b = a.float(), b.float()
    if kind == "smooth_l1":
        return F.smooth_l1_loss(a, b, beta=beta, reduction="none")
    if kind == "l1":
        return (a - b).abs()
    if kind == "nt_xent":
        logits = product(F.normalize(a, dim=-1), F.normalize(b, dim=-1).transpose(1, 2)) / temperature
        same_token = torch.arange(a.shape[1], device=a.device).expand(len(a), -1)
        return F.cross_entropy(logits.transpose(1, 2), same_token, reduction="none")
    return 1 - cosine(a, b, dim=1 if kind == "cosine_tokens" else -1)


def mean_distance(
    kind: Similarity, a: Tensor, b: Tensor, present: Tensor | None = None, *, beta: float = 0.05
) -> Tensor:
    """Return the mean of `distance`, a scalar, over the tokens in `present` (B, T) bool; None means all."""
    # For a cosine over tokens, tokens of zeros are as good as left out of the sums.
    if present is not None and kind == "cosine_tokens":
        a, b, present = a * present[..., None], b * present[..., None], None
    return mean_of_tokens(distance(kind, a, b, beta=beta), present)


def relations(tokens: Tensor) -> Tensor:
    """Return the float32 cosines between all tokens of a sample, (B, T, D) -> (B, T, T)."""
    unit = F.normalize(tokens.float(), dim=-1)
    return product(unit, unit.transpose(1, 2))


def spatial_norm(tokens: Tensor, gamma: float) -> Tensor:
    """Return (y - gamma mean_tokens(y)) / (std_tokens(y) + 1e-6) in float32 (iREPA, arXiv 2512.10794)."""
    tokens = tokens.float()
    mean, std = tokens.mean(dim=1, keepdim=True), tokens.std(dim=1, keepdim=True)
    return (tokens - gamma * mean) / (std + 1e-6)


def in_groups(x: Tensor, group: int) -> Tensor:
    """Return groups of consecutive samples, (B, ...) -> (B / group, group, ...).

    A batch smaller than a group is one group. Raises ValueError if the batch is not a multiple of groups.
    """
    size = min(group, len(x))
    if len(x) % size:
        raise ValueError(f"group = {group} does not divide a micro-batch of {len(x)}")
    return x.unflatten(0, (-1, size))


def layer_at(fraction: float, backbone: BackboneSpec) -> int:
    """Return the layer nearest to a fraction of the depth, 1-based.

    0.3 of 28 is 8, and 0.3 of 12 is 4 (Self-Flow section 4).
    """
    return max(1, round(fraction * backbone.depth))


def taps_of(*layers: int | None) -> tuple[int, ...]:
    """Return the layers to tap, without layers that `resolved()` has not filled in yet."""
    return tuple(layer for layer in layers if layer is not None)


def resolved_layer(layer: int | None) -> int:
    """Return a layer that `resolved()` has filled in; raises ValueError if it has not."""
    if layer is None:
        raise ValueError("the layer is not set: build the method from Config(...).resolved(backbone)")
    return layer


def check_layer(field: str, layer: int | None, default: int, backbone: BackboneSpec) -> int:
    """Return the layer, or the default if it is None; raises ValueError if the backbone lacks the layer."""
    if layer is None:
        return default
    if not 1 <= layer <= backbone.depth:
        raise ValueError(f"{field} = {layer}: backbone {backbone.size} has layers 1 to {backbone.depth}")
    return layer
