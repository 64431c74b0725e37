"""Several processes as one: torchrun's environment, DDP's gradients, or a sharded run (fsdp.py). One process
is the case of a world of size 1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.errors import UserError
from harness.runtime.fsdp import is_sharded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """The one process that writes."""
        return self.rank == 0

    def mesh(self) -> DeviceMesh | None:
        """All processes as what a run is divided over; None where there is one."""
        if self.size == 1:
            return None
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.type, (self.size,))

    def wrap(self, module: nn.Module, *, changing: bool) -> nn.Module:
        """The module with gradients averaged over all processes; `changing` when not every step uses every
        parameter. A module that is divided averages its own."""
        if self.size == 1 or is_sharded(module):
            return module
        # A gradient is where it is exchanged: one copy of them, not two.
        return DistributedDataParallel(module, find_unused_parameters=changing, gradient_as_bucket_view=True)

    def accumulating(self, module: nn.Module, last: bool) -> AbstractContextManager:
        """Holds back the exchange of gradients in all but the last micro-batch; a divided module exchanges
        them at once, since nobody has room for all of them."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values)
            values = values / self.size
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(flags)
        return bool(flags.item())

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


def world_size() -> int:
    """Return the number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join(device: str) -> Iterator[World]:
    """The world that torchrun's variables describe (a world of one without them), left again at the end."""
    size = world_size()
    if size == 1:
        yield World(0, 1, pick_device(device))
        return
    chosen = pick_device(device, local_rank=int(os.environ["LOCAL_RANK"]))
    # The others wait while one trains a metric's network or measures 50k samples: longer than torch lets them
    # by default.
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield World(dist.get_rank(), size, chosen)
    finally:
        dist.destroy_process_group()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto` takes CUDA where there is one; raises `UserError` for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # events, collectives and meshes take the current one
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"runtime.device = '{name}' cannot be used: {reason} (allowed: auto, cpu, cuda, cuda:N)"
        ) from error
    return device
