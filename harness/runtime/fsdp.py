"""A run too large for one device, divided over all processes (FSDP2).

Each process keeps a slice of every parameter (rows of its first axis), and of its gradient, AdamW's moments and the EMA; a block's
weights are put together while it runs. What is computed is what DDP computes, the order of sums over processes apart.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(model: nn.Module, ema: nn.Module, method: nn.Module, mesh: DeviceMesh) -> None:
    """Divide a run's networks, in place, over the processes of a mesh and move them to its devices, block by block.

    Before the optimizer is made: it must see the slices. Names of parameters and buffers stay as they are.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # Queries, keys and the velocity are views; nothing writes into them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    for network in (model, ema):
        for block in network.blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # Nothing behind a pass of the EMA would take it apart again, as the backward pass does with the student.
    fully_shard(ema, mesh=mesh, reshard_after_forward=True)
    fully_shard(method, mesh=mesh)
    register_fsdp_forward_method(method, "loss")


def is_sharded(module: nn.Module) -> bool:
    return any(hasattr(parameter, "full_tensor") for parameter in module.parameters())


def own(tensor: Tensor) -> Tensor:
    """This process's slice, which shares memory with the tensor; a tensor that is not divided is its own slice."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor put together from all slices: an exchange, so every process must ask. One that is not divided, as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor on the device of `pattern`, divided as that is; every process takes its slice, nothing is exchanged."""
    if not hasattr(pattern, "placements"):
        return tensor.to(pattern.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None
    )
