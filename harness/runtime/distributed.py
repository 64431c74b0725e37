"""Runs on several processes: torchrun's environment, and gradients averaged by DDP or FSDP (fsdp.py).

A single process is a world of size 1.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.errors import UserError, first_line
from harness.runtime.fsdp import is_sharded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class World:
    """The ranks of a run, and the device of this one."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """True on rank 0, the only rank that writes files."""
        return self.rank == 0

    def mesh(self) -> DeviceMesh | None:
        """Return the mesh of all ranks over which a run is sharded; None for a single process."""
        if self.size == 1:
            return None
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.type, (self.size,))

    def wrap(self, module: nn.Module, *, changing: bool) -> nn.Module:
        """Return the module with gradients averaged over all ranks; a sharded module does so itself.

        Set `changing` if some steps do not use all parameters.
        """
        if self.size == 1 or is_sharded(module):
            return module
        # As views of the exchanged buckets, gradients are stored once instead of twice.
        return DistributedDataParallel(
            module, find_unused_parameters=changing, gradient_as_bucket_view=True, **_without_buffers()
        )

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager:
        """Delay the exchange of gradients until the last micro-batch.

        A sharded module exchanges them in every micro-batch, since no rank has memory for full gradients.
        """
        return module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over ranks; every rank calls it."""
        if self.size > 1:
            dist.all_reduce(values)
            values = values / self.size
        return values

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; every rank calls it."""
        if self.size == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags)
        return bool(flags.item())

    def agrees(self, number: int) -> bool:
        """Return whether every rank has the same whole number; every rank calls it."""
        if self.size == 1:
            return True
        ends = torch.tensor([number, -number], dtype=torch.int64, device=self.device)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        most, least = ends.tolist()
        return most == -least

    def wait(self) -> None:
        """Wait until every rank has called this."""
        if self.size > 1:
            dist.barrier()


def world_size() -> int:
    """Return the number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join(device: str) -> Iterator[World]:
    """Yield the world that torchrun's variables describe, of size 1 without them; leave it at the end."""
    size = world_size()
    if size == 1:
        yield World(0, 1, pick_device(device))
        return
    _check_one_device_each(device)
    chosen = pick_device(device, local_rank=int(os.environ["LOCAL_RANK"]))
    on_gpu = chosen.type == "cuda"
    # The other ranks wait while rank 0 trains a metric's network or measures 50k samples, which takes longer
    # than torch's default timeout. With a device, NCCL connects the ranks at once, or reports that it cannot.
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", timeout=timedelta(hours=2), device_id=chosen if on_gpu else None
    )
    try:
        yield World(dist.get_rank(), size, chosen)
    finally:
        dist.destroy_process_group()


def _check_one_device_each(name: str) -> None:
    """Raise `UserError` if the processes of this machine would share one GPU, which NCCL does not support."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if name.startswith("cuda:") and here > 1:
        raise UserError(
            f"runtime.device = '{name}' is one GPU, but {here} processes run on this machine; set "
            "runtime.device to cuda, by which process n has GPU n"
        )


# Any: the arguments of DDP have different types.
def _without_buffers() -> dict[str, Any]:
    """Return the option of DDP by which a pass does not wait for rank 0 to send its buffers.

    They are codes of positions and masks, which are constants of the configuration. torch 2.13 renamed it.
    """
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device of a name; `auto` is CUDA if available. Raises `UserError` if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda":
            # Events, collectives and meshes use the current device.
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise UserError(
            f"runtime.device = '{name}' cannot be used: {reason} (allowed: auto, cpu, cuda, cuda:N)"
        ) from error
    return device
