"""Rounds of batches: each rank processes one batch per round, and rank 0 receives them in single-process
order.

The unit of work is a full batch, so each batch has the same bits as with one process, and so has everything
that rank 0 computes from them (rows, moments, distances). A sharded network needs the same number of passes
on every rank. If the last round has fewer batches than ranks, the last batch is processed again and dropped.
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


class Round(NamedTuple):
    """One round over numbered samples."""

    local: range
    """The samples of this rank's batch."""
    combined: range
    """The samples of all ranks together."""
    size: int
    """Samples in a full batch."""

    @property
    def batches(self) -> list[range]:
        """The samples of each rank's batch, in order, without dropped batches."""
        return [self.combined[start : start + self.size] for start in range(0, len(self.combined), self.size)]


def rounds(numbers: range, size: int, world: World) -> Iterator[Round]:
    """Yield the rounds over samples in batches of `size`; rank b mod `world.size` processes batch b."""
    batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    for first in range(0, len(batches), world.size):
        local = batches[min(first + world.rank, len(batches) - 1)]
        yield Round(local, numbers[first * size : (first + world.size) * size], size)


def gather_round(x: Tensor, batch: Round, world: World) -> Tensor | None:
    """Return on rank 0 the rows of a round, (len(batch.combined), ...), and None on the other ranks.

    Every rank calls it with its (len(batch.local), ...) rows on `world.device`, of the same shape and type.
    """
    if world.size == 1:
        return x
    # All ranks must send the same shape.
    full = x.new_zeros(batch.size, *x.shape[1:])
    full[: len(x)] = x
    parts = [torch.empty_like(full) for _ in range(world.size)] if world.main else None
    dist.gather(full, parts)
    return None if parts is None else torch.cat(parts)[: len(batch.combined)]


@contextmanager
def main_first(world: World) -> Iterator[None]:
    """Let the other ranks enter the block after rank 0 has left it, so that they find its results in the
    cache.

    If rank 0 raises, the others raise `RunStopped`.
    """
    if not world.main:
        stop_if_any_failed(world, failed=False)
        yield
        return
    failed = True
    try:
        yield
        failed = False
    finally:
        world.any(failed)


def stop_if_any_failed(world: World, failed: bool) -> None:
    """Raise `RunStopped` if something failed on another rank, which reports the reason."""
    if world.any(failed) and not failed:
        raise RunStopped("another process failed and reports the reason")
