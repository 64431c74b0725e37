"""Values that need no random generator, so that released code and a test fill networks with the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return values between -0.3 and 0.3, float32, that depend on name and place."""
    place = 1.7 * torch.arange(math.prod(shape), dtype=torch.float64)
    return (0.3 * torch.cos(place + sum(map(ord, name)) % 97)).float().reshape(shape)


@torch.no_grad()
def fill(network: nn.Module, named: Callable[[str], str] = str) -> None:
    """Give each parameter the values of its name, after `named` has changed it."""
    for name, parameter in network.named_parameters():
        parameter.copy_(filled(named(name), tuple(parameter.shape)))
