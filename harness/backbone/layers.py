"""Layers of both networks: the MLP, and the final layer with its modulated norm.

B  samples    K  levels    T  tokens    D  width    E  extra channels
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone.times import Times


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        """Return tokens (B, T, D)."""
        return self.fc2(gelu(self.fc1(h)))


def gelu(x: Tensor) -> Tensor:
    """Return x (1 + tanh u) / 2 = x sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).

    PyTorch's function is one kernel in eager mode. Compiled, both forms are, and on a CPU an exponential
    costs less than a hyperbolic tangent.
    """
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))


class FinalLayer(nn.Module):
    """Modulated layer norm, then a linear layer for each part and for the extra token."""

    def __init__(self, width: int, outputs: Sequence[int], extra: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 2 * width))
        self.linear, *others = (nn.Linear(width, values) for values in outputs)
        self.linear_beside = nn.ModuleList(others)
        if extra:
            self.linear_extra = nn.Linear(width, extra)

    def forward(
        self, h: Tensor, c_BKD: Tensor, times: Times, has_extra: bool, tokens: Sequence[int]
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return the velocity of every part's patches, (B, T, outputs), and of the extra token, (B, E).

        `tokens` holds the number of tokens per part. Without an extra token, its velocity is None.
        """
        shift, scale = self.adaLN_modulation(c_BKD).chunk(2, dim=-1)
        h = modulate(h, times.select(shift), times.select(1 + scale))
        extra = None
        if has_extra:
            h, extra = h[:, 1:], self.linear_extra(h[:, 0])
        if not self.linear_beside:
            return [self.linear(h)], extra
        linears = (self.linear, *self.linear_beside)
        return [linear(part) for linear, part in zip(linears, h.split(tokens, dim=1), strict=True)], extra


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise h (B, T, D) by layer norm without parameters, then scale and shift, both (B, T or 1, D).

    `scale` includes the 1 of SiT's (1 + scale), which the caller adds per level instead of per token.
    """
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * scale + shift
