"""Initial weights as in the released code, each drawn from a stream with its parameter's name.

zero        `initialize_weights` in SiT's models.py, which REPA and Self-Flow also apply to their projectors
released    PyTorch's defaults, because REPA's models/mmdit.py initialises nothing, projectors included
"""

from __future__ import annotations

import math
import re
from typing import Literal

import torch
from torch import Tensor, nn

from harness.runtime.random_streams import Streams

FINAL = re.compile(r"final_layer(s\.\d+)?\.linear")
"""Names of the linear layers that predict a velocity: of the last layer, and of further ones."""
EMBEDDER = re.compile(r"(^|\.)[ty]_embedder\.")
"""Names of the embeddings of times and labels: of the network, and of a method's adapter."""


@torch.no_grad()
def initialize(
    module: nn.Module,
    streams: Streams,
    prefix: str = "",
    *,
    initial: Literal["zero", "released"] = "zero",
) -> None:
    """Fill every parameter in place, with values that depend only on seed, name and shape.

    In both, the learned weight of the flow loss (harness/flow/weighting.py) is zero.

    zero        Matrices are Xavier-uniform, biases zero, and norm weights one. The label table and the
                timestep MLP are N(0, 0.02). Modulation and final layer are zero.
    released    Weights and biases are uniform within 1 / sqrt(inputs of the layer), except those of norms.

    Mask tokens are N(0, 0.02) in both (SPRINT models/sit.py, PixelREPA model_pixelREPA.py).
    """
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    for name, parameter in module.named_parameters():
        stream = f"init/{prefix}{name}"
        if name.startswith("log_variance."):
            parameter.zero_()
        elif initial == "zero" or ".norm." in f".{name}" or name.endswith("mask_token"):
            parameter.copy_(_initial(name, parameter.shape, streams, stream))
        else:
            weight = shapes.get(f"{name.removesuffix('.bias')}.weight", parameter.shape)
            bound = 1 / math.sqrt(math.prod(weight[1:]))
            parameter.copy_(bound * (2 * streams.uniform(stream, [0], parameter.shape)[0] - 1))


def _initial(name: str, shape: torch.Size, streams: Streams, stream: str) -> Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith("mask_token"):
        return 0.02 * streams.normal(stream, [0], shape)[0]
    if len(shape) < 2 or "adaLN_modulation" in name or FINAL.match(name):
        return torch.zeros(shape)
    if EMBEDDER.search(name):
        return 0.02 * streams.normal(stream, [0], shape)[0]
    fan_out, fan_in = shape[0], math.prod(shape[1:])
    bound = math.sqrt(6 / (fan_in + fan_out))
    return bound * (2 * streams.uniform(stream, [0], shape)[0] - 1)
