"""Rotary positions: queries and keys rotated by their position, so that attention depends on differences.

One axis is RoFormer's (arXiv 2104.09864, Eq. 34). Two and three axes use the axial form, where each axis
rotates separate pairs of channels (arXiv 2403.13298, section 3.1). Frequencies are RoFormer's,
10000^(-i / n) for pair i of an axis with n pairs; positions are counted in tokens.

    B  samples    N  heads    T  tokens    d  channels of a head    A  axes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.backbone.tokens import Part


def rotation(channels: int, parts: Sequence[Part], *, extra: bool = False) -> Tensor:
    """Return cosine and sine of the angle of every token and pair of channels, (2, T, d / 2) float32.

    Pair i consists of channels i and i + d / 2. Pairs are divided among axes like the width of the
    sine-cosine code (tokens.py); a video of one frame is an image.

    one axis      all pairs
    two axes      first half for the column, second for the row
    three axes    three eighths for the column, three eighths for the row, the rest for time

    With `extra`, a first token is added that is not rotated. Raises ValueError if an axis has no pair.
    """
    place = places(parts)
    pairs = divided(channels, place.shape[1])
    if extra:
        place = np.concatenate([np.zeros((1, place.shape[1])), place])
    angle = angles(place, pairs)
    return torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)])).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Return x (B, N, T, d) with each pair of channels rotated by its angle.

    Half precision is computed in float32 and returned in x's type.
    """
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def places(parts: Sequence[Part]) -> np.ndarray:
    """Return the position of every token, (T, A) float64, with the last axis of the grid first.

    Parts of one sample share a clock: the audio of a video has column 0, row 0, and its time in units of the
    video's tokens.
    """
    first, *others = parts
    grid = _grid(parts)
    place = np.indices(grid).reshape(len(grid), -1)[::-1].T.astype(np.float64)
    times = [np.arange(part.tokens) * first.grid[0] / part.tokens for part in others]
    return np.concatenate([place, *(np.pad(time[:, None], ((0, 0), (2, 0))) for time in times)])


def _grid(parts: Sequence[Part]) -> tuple[int, ...]:
    """Return the grid of the axes that have positions: a video of one frame has no time."""
    first, *others = parts
    return first.grid[1:] if len(first.grid) == 3 and first.grid[0] == 1 and not others else first.grid


def check_heads(channels: int, parts: Sequence[Part]) -> None:
    """Raise ValueError if heads of this width have no pair of channels for an axis."""
    divided(channels, len(_grid(parts)))


def divided(channels: int, axes: int) -> tuple[int, ...]:
    """Return the number of pairs of channels per axis; raises ValueError if an axis gets none."""
    pairs = channels // 2
    space = {1: 0, 2: pairs // 2, 3: 3 * pairs // 8}[axes]
    each = (space,) * (axes - 1) + (pairs - (axes - 1) * space,)
    if channels % 2 or 0 in each:
        raise ValueError(
            f"positions = rotary: a head of {channels} channels cannot be divided among {axes} axes"
        )
    return each


def angles(place: np.ndarray, pairs: Sequence[int]) -> np.ndarray:
    """Return the angles in radians, (T, d / 2), at positions (T, A)."""
    each = [at[:, None] * 10000.0 ** (-np.arange(n) / n) for at, n in zip(place.T, pairs, strict=True)]
    return np.concatenate(each, axis=1)
