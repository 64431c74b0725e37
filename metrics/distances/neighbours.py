"""Nearest neighbours: distances in blocks of rows and radii of balls, for precision, coverage and others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from metrics.arrays import BLOCK
from metrics.value import MetricError

Distance = Callable[[Tensor, Tensor], Tensor]
"""(A, d), (B, d) -> (A, B)"""


def blocks(rows: Tensor, columns: Tensor, distance: Distance) -> Iterator[tuple[slice, Tensor]]:
    """Yield the distances of all rows to all columns, a block of rows at a time, with the rows' slice."""
    for start in range(0, len(rows), BLOCK):
        part = slice(start, min(start + BLOCK, len(rows)))
        yield part, distance(rows[part], columns)


def radii(points: Tensor, k: int, distance: Distance) -> Tensor:
    """Return (N,): the distance of each point to its k-th nearest other point."""
    # k + 1, because each point is nearest to itself.
    found = [block.kthvalue(k + 1, dim=1).values for _, block in blocks(points, points, distance)]
    return torch.cat(found)


def check_k(k: int, *counts: int) -> None:
    """Raise `MetricError` for a number of neighbours that sets of these sizes do not have."""
    if not 1 <= k < min(counts):
        raise MetricError(f"k = {k} neighbours: expected 1 .. {min(counts) - 1} for {min(counts)} samples")


def euclid(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b)
