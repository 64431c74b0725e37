"""Sharded runs (FSDP2), for a run that is too large for one device.

Each rank keeps a shard (rows of the first axis) of every parameter, of its gradient, of AdamW's moments and
of the EMA. A block's weights are gathered while it runs. Results equal those of DDP, except for the order of
sums over ranks.

In bfloat16 the student's blocks are gathered in bfloat16, to which autocast would round their weights anyway,
since all of them belong to linear layers. So half the bytes are sent, and no rank keeps rounded copies of all
blocks until the backward pass. Gradients are summed over ranks in float32. The EMA is gathered in float32, in
which evaluations may run.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def shard(
    model: nn.Module, ema: nn.Module, method: nn.Module, mesh: DeviceMesh, *, half: bool = False
) -> None:
    """Shard a run's networks in place over the ranks of a mesh and move them to its devices, block by block.

    Call it before the optimizer is built, which must receive the shards. Names of parameters and buffers do
    not change. `half` is true for a student that runs under bfloat16's autocast.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    # Queries, keys and the velocity are views, but no code writes into them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    # Inputs keep their types: times and tokens are float32 under autocast too.
    rounded = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    unchanged = MixedPrecisionPolicy()
    for network, policy in ((model, rounded if half else unchanged), (ema, unchanged)):
        for block in network.get_submodule("blocks").children():
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    # In the student the backward pass frees the gathered weights; the EMA has none.
    fully_shard(ema, mesh=mesh, reshard_after_forward=True)
    fully_shard(method, mesh=mesh)
    register_fsdp_forward_method(method, "loss")


def is_sharded(module: nn.Module) -> bool:
    """Return whether any parameter of a module is sharded."""
    return any(map(_is_dtensor, module.parameters()))


def local_shard(tensor: Tensor) -> Tensor:
    """Return this rank's shard, which shares memory with the tensor; an unsharded tensor is returned
    unchanged."""
    return tensor.to_local() if _is_dtensor(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the tensor gathered from all ranks, all of which must call this; an unsharded tensor is returned
    unchanged."""
    return tensor.full_tensor() if _is_dtensor(tensor) else tensor


def shard_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Return a full tensor on the device of `pattern`, sharded like `pattern`.

    Every rank needs the full tensor and takes its shard of it; nothing is sent.
    """
    if not _is_dtensor(pattern):
        return tensor.to(pattern.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None
    )


def _is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    # Importing DTensor takes a second, which runs on one device should not spend.
    return hasattr(tensor, "placements")
