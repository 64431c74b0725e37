"""The cost of an optimizer: FLOPs of a step, and the numbers that it keeps.

AdamW's work is counted per parameter. Muon's matrix products are counted by PyTorch's counter in a step on
the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.config.training_spec import OptimizerSpec

OPTIMIZER_FLOPS = 15
"""FLOPs per parameter: gradient norm and clip 3, first moment 3, second moment 4, update 5 (AdamW without
weight decay). Adam-atan2 has the same number: a factor in place of the epsilon."""
MUON_FLOPS = 14
"""FLOPs per number of a matrix, without the products: gradient norm and clip 3, momentum 3, Nesterov 3,
division by the matrix's norm 3, update 2."""


def is_orthogonalised(name: str, parameter: Tensor) -> bool:
    """Return whether Muon has a parameter (`Run.learned`): a matrix of a block of the backbone."""
    return name.startswith("model.blocks.") and parameter.ndim == 2


def optimizer_flops(chosen: OptimizerSpec, learned: Mapping[str, nn.Parameter]) -> int:
    """Return the FLOPs of a step for parameters on the meta device that have a gradient, by name."""
    numbers = sum(p.numel() for p in learned.values())
    if chosen.name != "muon":
        return OPTIMIZER_FLOPS * numbers
    matrices = [p for name, p in learned.items() if is_orthogonalised(name, p)]
    inside = sum(p.numel() for p in matrices)
    with FlopCounterMode(display=False) as counter:
        torch.optim.Muon(matrices).step()
    return OPTIMIZER_FLOPS * (numbers - inside) + MUON_FLOPS * inside + counter.get_total_flops()


def kept_tensors(chosen: OptimizerSpec, name: str, parameter: Tensor) -> int:
    """Return how many tensors shaped like a parameter the optimizer keeps for it."""
    return 1 if chosen.name == "muon" and is_orthogonalised(name, parameter) else 2
