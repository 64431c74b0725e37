"""Initial weights as in the released code, each drawn from a stream with its parameter's name.

Source: `initialize_weights` in SiT's models.py, which REPA and Self-Flow also apply to their projectors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from harness.runtime.random_streams import Streams


@torch.no_grad()
def initialize(module: nn.Module, streams: Streams, prefix: str = "") -> None:
    """Fill every parameter in place, with values that depend only on seed, name and shape.

    Matrices are Xavier-uniform, biases zero, and norm weights one. The label table and the timestep MLP are
    N(0, 0.02). Modulation and final layer are zero.
    """
    for name, parameter in module.named_parameters():
        parameter.copy_(_initial(name, parameter.shape, streams, f"init/{prefix}{name}"))


def _initial(name: str, shape: torch.Size, streams: Streams, stream: str) -> Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if len(shape) < 2 or "adaLN_modulation" in name or name.startswith("final_layer.linear"):
        return torch.zeros(shape)
    if name.startswith(("t_embedder.", "y_embedder.")):
        return 0.02 * streams.normal(stream, [0], shape)[0]
    fan_out, fan_in = shape[0], math.prod(shape[1:])
    bound = math.sqrt(6 / (fan_in + fan_out))
    return bound * (2 * streams.uniform(stream, [0], shape)[0] - 1)
