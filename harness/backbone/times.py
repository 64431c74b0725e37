"""Times of a batch of token sequences: K noise levels per sample, and the level of each token.

K = 1 is plain flow matching, K = 2 Self-Flow's dual timesteps, K = T diffusion forcing. Values that depend
on time are computed once per level and then selected per token, so two levels cost two rows instead of T.

    B  samples    K  levels per sample    T  tokens    D  features
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class GivenNoise:
    """The noise of given tokens in training, which are clean without it."""

    levels: Tensor
    """(B, 1) float32, their time."""
    tokens: Tensor
    """(T,) bool, the given tokens that have it."""

    def to(self, device: torch.device) -> GivenNoise:
        """Return the noise on a device."""
        return GivenNoise(*(one.to(device, non_blocking=True) for one in (self.levels, self.tokens)))


@dataclass(frozen=True)
class Times:
    """The noise levels of samples, and the level of each token."""

    levels: Tensor
    """(B, K) float32 in [0, 1]; 1 is noise."""
    which: Tensor | None = None
    """(B, T) bool (K = 2) or int64, the level of each token. With None, all tokens have the single level
    (K = 1), or token i has level i (K = T)."""
    given: GivenNoise | None = None
    """The times of given tokens that are not clean (`with_given`); None for time 0."""

    @classmethod
    def per_sample(cls, t: Tensor) -> Times:
        """Return times with one level for all tokens of a sample; t: (B,)."""
        return cls(t[:, None])

    @classmethod
    def dual(cls, t: Tensor, s: Tensor, mask: Tensor) -> Times:
        """Return times s where the mask (B, T) is set and t elsewhere (Self-Flow Eq. 4); t, s: (B,)."""
        return cls(torch.stack([t, s], dim=1), mask)

    @classmethod
    def per_token(cls, tau: Tensor) -> Times:
        """Return times with a separate level for each token; tau: (B, T)."""
        return cls(tau)

    def select(self, values_BKD: Tensor) -> Tensor:
        """Return values per token, (B, T, D), or (B, 1, D) if all tokens share one level."""
        return values_BKD if self.which is None else Selected.apply(values_BKD, self.which)

    def per_token_levels(self) -> Tensor:
        """Return tau, (B, T), or (B, 1) if all tokens share one level."""
        return self.levels if self.which is None else self.select(self.levels[:, :, None])[:, :, 0]

    def of_tokens(self, rows: Tensor) -> Times:
        """Return the times of some tokens of each sample; rows: (B, S) int64."""
        if self.which is not None:
            return Times(self.levels, self.which.gather(1, rows))
        return self if self.levels.shape[1] == 1 else Times(self.levels.gather(1, rows))

    def with_given(self, given: Tensor) -> Times:
        """Return times in which given tokens have time 0, or that of their noise; given: (T,) bool."""
        if self.which is None and self.levels.shape[1] > 1:
            levels = self.levels.masked_fill(given, 0.0)
            if self.given is not None:
                levels = torch.where(self.given.tokens, self.given.levels, levels)
            return Times(levels)
        clean = self.levels.new_zeros(len(self.levels), 1)
        if self.which is None:
            which = given.expand(len(self.levels), -1)
        else:
            which = torch.where(given, self.levels.shape[1], self.which.long())
        levels = torch.cat([self.levels, clean], dim=1)
        if self.given is None:
            return Times(levels, which)
        which = torch.where(self.given.tokens, levels.shape[1], which.long())
        return Times(torch.cat([levels, self.given.levels], dim=1), which)

    def shares(self, counted: Tensor | None = None) -> Tensor:
        """Return the share of a sample's tokens that have each level, (B, K) float32.

        `counted` (B, T) bool restricts it to some tokens of each sample.
        """
        if self.which is None:
            has_BKT = torch.eye(self.levels.shape[1], device=self.levels.device)[None]
        else:
            levels = torch.arange(self.levels.shape[1], device=self.which.device)
            has_BKT = (self.which[:, None] == levels[:, None]).float()
        if counted is None:
            return has_BKT.mean(dim=2).expand(len(self.levels), -1)
        return (has_BKT * counted[:, None]).sum(dim=2) / counted.sum(dim=1, keepdim=True)

    def to(self, device: torch.device) -> Times:
        """Return the times on a device."""
        which = None if self.which is None else self.which.to(device, non_blocking=True)
        given = None if self.given is None else self.given.to(device)
        return Times(self.levels.to(device, non_blocking=True), which, given)


class Selected(torch.autograd.Function):
    """Selection of each token's row from the rows of levels.

    The gradient of a level is the sum over its tokens, computed as one product with zeros and ones. Autograd
    would first write a tensor of all tokens for every level, or sum in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, values_BKD: Tensor, which_BT: Tensor) -> Tensor:
        B, K, D = values_BKD.shape
        ctx.levels = K
        ctx.save_for_backward(which_BT)
        rows_BT = which_BT.long() + K * torch.arange(B, device=which_BT.device)[:, None]
        return values_BKD.reshape(B * K, D).index_select(0, rows_BT.flatten()).reshape(B, -1, D)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad_BTD,), (which_BT,) = grads, ctx.saved_tensors
        has_BKT = which_BT[:, None] == torch.arange(ctx.levels, device=which_BT.device)[:, None]
        return has_BKT.to(grad_BTD.dtype) @ grad_BTD, None
