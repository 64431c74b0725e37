"""Conditions of a network: a label per sample, or the features of a text per sample.

Labels are int64 (B,), and the null label is the number of classes. The null text is the empty caption: a
caption is dropped by replacing its features and its mask by those of the empty caption (`where`).

    B  samples    L  text tokens    D  features of a text encoder
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class TextShape(NamedTuple):
    """The shape of a text encoder's features, which a network is built for."""

    dim: int
    """Features of a token."""
    length: int
    """Tokens of a text, padding included."""


CLIP_L = TextShape(768, 77)
"""The features of CLIP ViT-L/14, which REPA's text-to-image network reads."""


@dataclass(frozen=True, eq=False)
class Text:
    """The features of a text per sample.

    Raises ValueError if shapes or types do not fit, or if a text has no token to attend to. Values are only
    checked on the CPU, where texts are made, so that no GPU has to be waited for.
    """

    features: Tensor
    """(B, L, D) float32."""
    mask: Tensor | None = None
    """(B, L) bool, true for real tokens, which alone are attended to. With None, all tokens are, padding
    included, as in REPA's released network."""

    def __post_init__(self) -> None:
        if self.features.ndim != 3 or not self.features.is_floating_point():
            raise ValueError(f"text features are float (B, L, D), but got {_described(self.features)}")
        if 0 in self.features.shape[1:]:
            raise ValueError(f"a text has at least one token, but got {_described(self.features)}")
        if self.mask is None:
            return
        if self.mask.shape != self.features.shape[:2] or self.mask.dtype != torch.bool:
            raise ValueError(
                f"the mask of text features {_described(self.features)} is bool "
                f"{tuple(self.features.shape[:2])}, but got {_described(self.mask)}"
            )
        if self.mask.device.type == "cpu" and not isinstance(self.mask, FakeTensor):
            empty = (~self.mask.any(dim=1)).nonzero().flatten().tolist()
            if empty:
                raise ValueError(f"text {empty[0]} of {len(self)} has no real token: its mask is all false")

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice | Tensor | np.ndarray | Sequence[int]) -> Text:
        """Return the texts of some rows: a slice, or indices, or a bool mask (B,)."""
        if isinstance(rows, Tensor):
            rows = rows.to(self.features.device)
        return Text(self.features[rows], None if self.mask is None else self.mask[rows])

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Text:
        """Return the texts on a device."""
        moved = self.features.to(device, non_blocking=non_blocking)
        mask = None if self.mask is None else self.mask.to(device, non_blocking=non_blocking)
        return replace(self, features=moved, mask=mask)

    def expand(self, size: int) -> Text:
        """Return one text for `size` samples, without a copy of its features."""
        mask = None if self.mask is None else self.mask.expand(size, -1)
        return Text(self.features.expand(size, -1, -1), mask)

    def where(self, rows: Tensor, other: Text) -> Text:
        """Return these texts with those of `other` (B or 1 of the same length) where `rows` (B,) is true."""
        features = torch.where(rows[:, None, None], other.features, self.features)
        if self.mask is None and other.mask is None:
            return Text(features)
        return Text(features, torch.where(rows[:, None], _mask(other), _mask(self)))


Condition = Tensor | Text
"""Labels (B,) int64, or the features of texts."""


@dataclass(frozen=True, eq=False)
class SharedText:
    """The texts of a batch of samples, each different one once, for the passes of a sampler.

    What a network computes from a text alone is kept for the next pass, so an object serves one network.
    """

    distinct: Text
    """U texts."""
    rows: Tensor
    """(B,) int64, the text of each sample."""
    _kept: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def mask(self) -> Tensor | None:
        """(B, L) bool, the mask of each sample's text; None if its padding is attended to."""
        return None if self.distinct.mask is None else self.distinct.mask[self.rows]

    def with_text(self, text: Text) -> SharedText:
        """Return these samples, then as many with one other text."""
        last = torch.full_like(self.rows, len(self.distinct))
        return SharedText(concatenated(self.distinct, text), torch.cat([self.rows, last]))

    def embedded(self, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """Return embedded tokens (U, L, width); without gradients they are computed once."""
        if torch.is_grad_enabled():
            return embed(self.distinct.features)
        if "tokens" not in self._kept:
            self._kept["tokens"] = embed(self.distinct.features)
        return self._kept["tokens"]


def shared(text: Text) -> SharedText:
    """Return texts with equal ones merged, if that leaves at most half of them; else with each its own.

    Their number is a power of two, of which some may be copies, so that compiled code meets few shapes.
    """
    size = len(text)
    each = torch.arange(size, device=text.features.device)
    if size == 1:
        return SharedText(text, each)
    values = text.features.flatten(1)
    if text.mask is not None:
        values = torch.cat([values, text.mask.to(values.dtype)], dim=1)
    _, rows = values.unique(dim=0, return_inverse=True)
    # The first sample of each text.
    first = torch.full_like(each, size).scatter_reduce(0, rows, each, "amin")[: int(rows.max()) + 1]
    count = 1 << (len(first) - 1).bit_length()
    if count > size // 2:
        return SharedText(text, each)
    return SharedText(text[torch.cat([first, first[:1].expand(count - len(first))])], rows)


def concatenated(first: Text, second: Text) -> Text:
    """Return the texts of both, which have the same length, one after the other."""
    features = torch.cat([first.features, second.features])
    if first.mask is None and second.mask is None:
        return Text(features)
    return Text(features, torch.cat([_mask(first), _mask(second)]))


def _mask(text: Text) -> Tensor:
    if text.mask is None:
        return torch.ones(text.features.shape[:2], dtype=torch.bool, device=text.features.device)
    return text.mask


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
