"""Batches in turn: of each round every process does one, and the main process has them all in the order of one process.

A batch is the unit that is shared out, so each has the bits that it has with one process, and what the main process makes of
them (rows, moments, distances) has too. Every process does equally many, as a sharded network demands of whoever calls it:
where the last round has fewer batches than there are processes, the last batch is done again and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from harness.errors import RunStopped
from harness.runtime.distributed import World


class Turn(NamedTuple):
    """One round over numbered samples."""

    mine: range
    """The samples of this process's batch."""
    whole: range
    """Those of all processes together."""
    size: int
    """Samples in a full batch."""

    @property
    def batches(self) -> list[range]:
        """The samples of each process's batch, in order; without a batch that is dropped."""
        return [self.whole[start : start + self.size] for start in range(0, len(self.whole), self.size)]


def turns(numbers: range, size: int, world: World) -> Iterator[Turn]:
    """The rounds over these samples in batches of `size`; batch b is done by process b mod `world.size`."""
    batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    for first in range(0, len(batches), world.size):
        mine = batches[min(first + world.rank, len(batches) - 1)]
        yield Turn(mine, numbers[first * size : (first + world.size) * size], size)


def collected(x: Tensor, turn: Turn, world: World) -> Tensor | None:
    """The rows of a round, (len(turn.whole), ...), from each process's (len(turn.mine), ...); None but on the main process.

    Every process calls it, with rows on `world.device` of one shape and type.
    """
    if world.size == 1:
        return x
    full = x.new_zeros(turn.size, *x.shape[1:])  # an exchange takes equal shapes
    full[: len(x)] = x
    parts = [torch.empty_like(full) for _ in range(world.size)] if world.main else None
    dist.gather(full, parts)
    return None if parts is None else torch.cat(parts)[: len(turn.whole)]


@contextmanager
def main_first(world: World) -> Iterator[None]:
    """The others begin the block when the main process has left it, and find in the cache what it made there.

    Where the main process raises, the others raise `RunStopped`.
    """
    if not world.main:
        together(world, failed=False)
        yield
        return
    failed = True
    try:
        yield
        failed = False
    finally:
        world.any(failed)


def together(world: World, failed: bool) -> None:
    """Raise `RunStopped` where something failed in another process, which tells what it was."""
    if world.any(failed) and not failed:
        raise RunStopped("another process could not go on and says why")
