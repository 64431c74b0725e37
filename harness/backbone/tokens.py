"""Tokens of samples, and their frozen position code, for images, video, audio, and video with other parts.

A part of a sample has channels and one to three axes, which a patch divides into a grid of tokens in
row-major order:

    image    (C, H, W)       patch (p, p)
    video    (C, F, H, W)    patch (f, p, p)
    audio    (C, L)          patch (p,)
    state    (S, 1)          patch (1,)         the state of a robot in one token
    action   (A, H)          patch (1,)         one token for each of the next H actions

    B  samples    T  tokens    D  features
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Layout(Protocol):
    """The assignment of a sample's values to tokens, by one `Part` or by a `BackboneConfig` with several."""

    @property
    def given_tokens(self) -> Tensor | None:
        """The mask of tokens that are given instead of generated, (T,) bool; None without any."""
        ...

    def spread(self, values_BT: Tensor) -> Tensor:
        """Return values per token, (B, T) or (B, 1), expanded to broadcast against samples (B, ...)."""
        ...


@dataclass(frozen=True)
class Part:
    """One modality of a sample and its patch.

    Raises ValueError if the patch does not divide every axis; nothing is padded.
    """

    shape: tuple[int, ...]
    """(channels, *axes)."""
    patch: tuple[int, ...]
    """The extent of a patch on every axis."""
    name: str = ""
    """The kind of the part if its axes do not determine it: `state` or `action`."""

    def __post_init__(self) -> None:
        if len(self.patch) != len(self.axes) or not 1 <= len(self.axes) <= 3:
            raise ValueError(
                f"patch = {_by(self.patch)} does not fit a sample with {len(self.axes)} axes (1 to 3)"
            )
        if any(axis % extent for axis, extent in zip(self.axes, self.patch, strict=True)):
            raise ValueError(
                f"patch = {_by(self.patch)} does not divide the {self.kind} size {_by(self.axes)}"
            )

    @property
    def axes(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def kind(self) -> str:
        return self.name or kind_of(self.shape)

    @property
    def given_tokens(self) -> None:
        """No token of a part is given; `BackboneConfig.given` gives some of them."""
        return None

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(axis // extent for axis, extent in zip(self.axes, self.patch, strict=True))

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def values(self) -> int:
        """The number of values of a sample."""
        return math.prod(self.shape)

    @property
    def token_values(self) -> int:
        """The number of values of a token."""
        return self.shape[0] * math.prod(self.patch)

    def spread(self, values_BT: Tensor) -> Tensor:
        """Return values per token (B, T) repeated over their patches, (B, 1, *axes).

        A value per sample, (B, 1), is reshaped to broadcast.
        """
        if values_BT.shape[1] == 1:
            return values_BT.reshape(-1, 1, *[1] * len(self.axes))
        values = values_BT.reshape(-1, 1, *self.grid)
        for axis, extent in enumerate(self.patch, start=2):
            values = values.repeat_interleave(extent, dim=axis)
        return values


def kind_of(shape: Sequence[int]) -> str:
    """Return `audio`, `image` or `video` for a shape (channels, *axes)."""
    return {2: "audio", 3: "image", 4: "video"}[len(shape)]


def split_parts(x: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return the parts of samples, each (B, *shape); x (B, N) holds several flattened and concatenated."""
    if len(shapes) == 1:
        return [x]
    flat = x.split([math.prod(shape) for shape in shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(flat, shapes, strict=True)]


def patchify(x: Tensor, patch: Sequence[int]) -> Tensor:
    """Return tokens (B, T, C *patch) of x (B, C, *axes); a token's values are ordered (channel, *patch)."""
    B, C, *axes = x.shape
    cells = x.reshape(B, C, *_cut(axes, patch))
    n = len(axes)
    grid, inner = [2 + 2 * i for i in range(n)], [3 + 2 * i for i in range(n)]
    return cells.permute(0, *grid, 1, *inner).reshape(B, -1, C * math.prod(patch))


def unpatchify(tokens: Tensor, patch: Sequence[int], axes: Sequence[int]) -> Tensor:
    """Return x (B, C, *axes) from tokens (B, T, *patch C).

    A token's values are ordered (*patch, channel), as in SiT's final layer.
    """
    n = len(axes)
    grid = [axis // extent for axis, extent in zip(axes, patch, strict=True)]
    cells = tokens.reshape(len(tokens), *grid, *patch, -1)
    order = [place for i in range(n) for place in (1 + i, 1 + n + i)]
    return cells.permute(0, 1 + 2 * n, *order).reshape(len(tokens), -1, *axes)


def positions(width: int, parts: Sequence[Part]) -> Tensor:
    """Return the position code of all tokens, (1, T, width).

    A single part has the code of its grid. Several parts share one clock: the video has the code of its grid,
    and other parts have the video's code of time, in units of its frames, with zeros in place of the code of
    space.
    """
    first, *others = parts
    codes = [sincos(width, first.grid)]
    for part in others:
        time = np.arange(part.tokens) * first.grid[0] / part.tokens
        code = np.concatenate(
            [np.zeros((part.tokens, width - width // 4)), _sincos(width // 4, time)], axis=1
        )
        codes.append(torch.from_numpy(code).float()[None])
    return torch.cat(codes, dim=1)


def sincos(width: int, grid: Sequence[int]) -> Tensor:
    """Return the sine-cosine position code of a grid, (1, T, width).

    one axis      the full width
    two axes      first half for the column, second for the row (MAE's, as in DiT and SiT)
    three axes    three quarters for space, as above, and the last quarter for time

    A video of one frame is an image.
    """
    if len(grid) == 3 and grid[0] == 1:
        grid = grid[1:]
    place = np.indices(grid).reshape(len(grid), -1)
    widths = {1: [width], 2: [width // 2] * 2, 3: [3 * width // 8] * 2 + [width // 4]}[len(grid)]
    code = np.concatenate([_sincos(w, at) for w, at in zip(widths, place[::-1], strict=True)], axis=1)
    return torch.from_numpy(code).float()[None]


def _sincos(width: int, position: np.ndarray) -> np.ndarray:
    frequency = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width / 2))
    angle = position[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def _cut(axes: Sequence[int], patch: Sequence[int]) -> list[int]:
    """Return every axis divided into two: the grid's and the patch's."""
    return [length for axis, extent in zip(axes, patch, strict=True) for length in (axis // extent, extent)]


def _by(lengths: Sequence[int]) -> str:
    return "x".join(map(str, lengths))
