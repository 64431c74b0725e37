"""Routing of tokens past some blocks of a network, and the fusion that may follow these blocks.

    h_kept = block_last( ... block_first( h[kept] ))    h[skipped] is unchanged    h = both, by position

This is TREAD's route (arXiv 2501.04765, routing_module.py). In a network with a fusion, tokens that skipped
return as a learned mask token m, and the tokens before the blocks are added by a linear layer (SPRINT, arXiv
2510.21986, models/sit.py `restore_full_sequence`, `renoise_linear`):

    h = W [ h_kept and m, by position ; h before the blocks ] + b

Tokens that skip the blocks are neither queries nor keys in them, so the blocks cost less. Each token keeps
its position, its time and its group.

B  samples    K  levels    T  tokens    S  tokens that stay    D  width
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

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
    """(B, S) int64, the positions of the tokens that stay, in rising order. Without any, no block runs."""
    dropped: Tensor | None = None
    """(B,) bool, the samples whose output of the blocks is left out after the last one; None for none."""

    @property
    def is_empty(self) -> bool:
        """True if no token stays, so that the blocks do not run."""
        return self.kept.shape[1] == 0

    def covers(self, layer: int) -> bool:
        """Return whether a block is part of the route, so that only tokens that stay have its output."""
        return self.first <= layer <= self.last

    def taken(self, values: Tensor) -> Tensor:
        """Return the values (B, S, D) of the tokens that stay, from those of all tokens, (B, T, D)."""
        return values.gather(1, self.kept[:, :, None].expand(-1, -1, values.shape[2]))

    def placed(self, values: Tensor, around: Tensor) -> Tensor:
        """Return the values of all tokens, (B, T, D), from new ones (B, S, D) of the tokens that stay.

        Those that skipped have the values of `around`.
        """
        # In autocast, the output of a block may have another type than its input.
        rows = self.kept[:, :, None].expand(-1, -1, values.shape[2])
        return around.to(values.dtype).scatter(1, rows, values)

    def returned(self, values: Tensor, around: Tensor) -> Tensor:
        """Return `placed`, in which all tokens of a dropped sample have the values of `around` too."""
        every = self.placed(values, around)
        if self.dropped is None:
            return every
        return torch.where(self.dropped[:, None, None], around.to(values.dtype), every)

    def with_extra(self) -> Route:
        """Return the route of a sequence that begins with an extra token, which stays."""
        first = self.kept.new_zeros(len(self.kept), 1)
        return replace(self, kept=torch.cat([first, 1 + self.kept], dim=1))

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
        dropped = None if self.dropped is None else self.dropped.to(device, non_blocking=True)
        return replace(self, kept=self.kept.to(device, non_blocking=True), dropped=dropped)


class Fusion(nn.Module):
    """The mask token of tokens that skipped, and the linear layer that joins two depths of a network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.linear = nn.Linear(2 * width, width)

    def forward(self, deep: Tensor, early: Tensor, route: Route | None) -> Tensor:
        """Return tokens (B, T, D) from those after the blocks, and all tokens before them (B, T, D)."""
        if route is not None:
            deep = route.returned(deep, self.mask_token.expand_as(early))
        return self.linear(torch.cat([deep, early], dim=-1))


class Passage:
    """The tokens of one pass through the blocks: which ones a block gets, and what follows its output.

    `fused` is the first and the last block whose output `fusion` joins with the tokens before them, or None.
    `ahead` is the number of text tokens in front of those of the sample.
    """

    def __init__(
        self,
        full: Surroundings,
        route: Route | None,
        fusion: Fusion | None = None,
        fused: tuple[int, ...] = (),
        ahead: int = 0,
    ) -> None:
        self.route, self.fusion = route, fusion
        self._fused, self._full, self._ahead = fused, full, ahead
        self._given = full
        self._around: Tensor | None = None
        self._early: Tensor | None = None
        if route is not None and fused and (route.first, route.last) != fused:
            raise ValueError(
                f"the route has blocks {route.first} to {route.last}, but this network fuses blocks "
                f"{fused[0]} to {fused[1]}"
            )

    def into(self, layer: int, h: Tensor) -> tuple[Tensor, Surroundings]:
        """Return the tokens that a block gets, and their surroundings."""
        if self._fused and layer == self._fused[0]:
            self._early = h
        if self.route is not None and layer == self.route.first:
            self._around, h = h, self.route.taken(h)
            self._given = self._full if self.route.is_empty else self.route.inside(self._full, self._ahead)
        return h, self._given

    def runs(self, layer: int) -> bool:
        """Return whether any token stays in a block."""
        return self.route is None or not (self.route.is_empty and self.route.covers(layer))

    def every(self, h: Tensor) -> Tensor:
        """Return all tokens, (B, T, D), inside a route or outside of it."""
        return h if self.route is None or self._around is None else self.route.placed(h, self._around)

    def beyond(self, layer: int, h: Tensor) -> Tensor:
        """Return what the next block gets, from the output of a block."""
        if self.fusion is not None and self._early is not None and layer == self._fused[1]:
            h = self.fusion(h, self._early, self.route)
        elif self.route is not None and self._around is not None and layer == self.route.last:
            h = self.route.returned(h, self._around)
        else:
            return h
        self._around, self._given = None, self._full
        return h
