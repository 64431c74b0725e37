"""Rotary positions: queries and keys turned by angles that grow with the position, so that attention sees
differences alone.

RoFormer (arXiv 2104.09864, Eq. 34) on one axis; on two and three in its axial form, where each axis turns
pairs of its own (arXiv 2403.13298, section 3.1). Frequencies are RoFormer's, 10000^(-i / n) for pair i of an
axis's n; units are tokens.

    B  samples    N  heads    T  tokens    d  channels of a head    A  axes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.backbone.tokens import Part


def rotation(channels: int, parts: Sequence[Part], *, extra: bool = False) -> Tensor:
    """Cosine and sine of the angle of every token and pair of channels, (2, T, d / 2) float32.

    Pair i is the channels i and i + d / 2. They are divided as the sine-cosine code's width is (tokens.py):

    one axis      all pairs
    two axes      first half for the column, second for the row
    three axes    three eighths for the column, as many for the row, the rest for time; a video of one frame
    is an image

    With `extra` a token comes first that is not turned. Raises ValueError where an axis is left without a
    pair.
    """
    place = places(parts)
    pairs = divided(channels, place.shape[1])
    if extra:
        place = np.concatenate([np.zeros((1, place.shape[1])), place])
    angle = angles(place, pairs)
    return torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)])).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x (B, N, T, d), each pair of channels turned by its angle; in float32 at least, given back in x's
    type."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def places(parts: Sequence[Part]) -> np.ndarray:
    """Where every token stands, (T, A) float64, the last axis of its grid first.

    Parts together share one clock: audio beside a video stands at column 0 and row 0, and at its time in the
    video's tokens.
    """
    first, *beside = parts
    grid = first.grid[1:] if len(first.grid) == 3 and first.grid[0] == 1 and not beside else first.grid
    own = np.indices(grid).reshape(len(grid), -1)[::-1].T.astype(np.float64)
    times = [np.arange(part.tokens) * first.grid[0] / part.tokens for part in beside]
    return np.concatenate([own, *(np.pad(time[:, None], ((0, 0), (2, 0))) for time in times)])


def divided(channels: int, axes: int) -> tuple[int, ...]:
    """Pairs of channels of each axis."""
    pairs = channels // 2
    space = {1: 0, 2: pairs // 2, 3: 3 * pairs // 8}[axes]
    each = (space,) * (axes - 1) + (pairs - (axes - 1) * space,)
    if channels % 2 or 0 in each:
        raise ValueError(
            f"positions = rotary: a head of {channels} channels cannot be divided among {axes} axes"
        )
    return each


def angles(place: np.ndarray, pairs: Sequence[int]) -> np.ndarray:
    """Radians at places (T, A), (T, d / 2)."""
    each = [at[:, None] * 10000.0 ** (-np.arange(n) / n) for at, n in zip(place.T, pairs, strict=True)]
    return np.concatenate(each, axis=1)
