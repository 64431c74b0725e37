"""Routing of tokens past some blocks of a network (TREAD, arXiv 2501.04765, routing_module.py).

    h_kept = block_last( ... block_first( h[kept] ))    h[skipped] is unchanged    h = both, by position

Tokens that skip the blocks are neither queries nor keys in them, so the blocks cost less. Each token keeps
its position, its time and its group.

B  samples    K  levels    T  tokens    S  tokens that stay    D  width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from harness.backbone.times import Times


class Surroundings(NamedTuple):
    """Inputs of a block in addition to its tokens."""

    c_BKD: Tensor
    times: Times
    mask: Tensor | None
    turns: Tensor | None


@dataclass(frozen=True)
class Route:
    """The blocks that some tokens skip, and the tokens that stay."""

    first: int
    """The first block of the route (1-based)."""
    last: int
    """The last block of the route, whose output has all tokens again."""
    kept: Tensor
    """(B, S) int64, the positions of the tokens that stay, in rising order."""

    def covers(self, layer: int) -> bool:
        """Return whether a block is part of the route, so that only tokens that stay have its output."""
        return self.first <= layer <= self.last

    def taken(self, values: Tensor) -> Tensor:
        """Return the values (B, S, D) of the tokens that stay, from those of all tokens, (B, T, D)."""
        return values.gather(1, self.kept[:, :, None].expand(-1, -1, values.shape[2]))

    def returned(self, values: Tensor, around: Tensor) -> Tensor:
        """Return the values of all tokens, (B, T, D), from new ones (B, S, D) of the tokens that stay.

        Those that skipped have the values of `around`.
        """
        # In autocast, the output of a block may have another type than its input.
        rows = self.kept[:, :, None].expand(-1, -1, values.shape[2])
        return around.to(values.dtype).scatter(1, rows, values)

    def with_extra(self) -> Route:
        """Return the route of a sequence that begins with an extra token, which stays."""
        first = self.kept.new_zeros(len(self.kept), 1)
        return Route(self.first, self.last, torch.cat([first, 1 + self.kept], dim=1))

    def inside(self, outside: Surroundings, ahead: int = 0) -> Surroundings:
        """Return the surroundings of the tokens that stay.

        `ahead` is the number of text tokens in front of those of the sample, in mask and rotation; they stay.
        """
        c_BKD, times, mask, turns = outside
        if times.which is None and times.levels.shape[1] > 1:
            c_BKD = self.taken(c_BKD)
        texts = torch.arange(ahead, device=self.kept.device).expand(len(self.kept), -1)
        rows = torch.cat([texts, ahead + self.kept], dim=1) if ahead else self.kept
        if mask is not None:
            if mask.shape[2] > 1:
                mask = mask.take_along_dim(rows[:, None, :, None], dim=2)
            mask = mask.take_along_dim(rows[:, None, None], dim=3)
        # One rotation per sample, and the same for all heads.
        turns = None if turns is None else turns[:, rows][:, :, None]
        return Surroundings(c_BKD, times.of_tokens(self.kept), mask, turns)

    def to(self, device: torch.device) -> Route:
        """Return the route on a device."""
        return Route(self.first, self.last, self.kept.to(device, non_blocking=True))


def everywhere(h: Tensor, around: Tensor | None, route: Route | None) -> Tensor:
    """Return all tokens, (B, T, D), inside a route or outside of it, where `around` is None."""
    return h if route is None or around is None else route.returned(h, around)
