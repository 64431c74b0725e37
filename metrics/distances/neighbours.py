"""What precision, recall, density, coverage and memorisation share: distances in blocks of rows, and balls."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from metrics.arrays import BLOCK
from metrics.value import MetricError

Distance = Callable[[Tensor, Tensor], Tensor]
"""(A, d), (B, d) -> (A, B)"""


def blocks(rows: Tensor, columns: Tensor, distance: Distance) -> Iterator[tuple[slice, Tensor]]:
    """Distances of all rows to all columns, some rows at a time, with which rows they are."""
    for start in range(0, len(rows), BLOCK):
        part = slice(start, min(start + BLOCK, len(rows)))
        yield part, distance(rows[part], columns)


def radii(points: Tensor, k: int, distance: Distance) -> Tensor:
    """(N,): from each point to its k-th nearest other point (each is nearest to itself)."""
    found = [block.kthvalue(k + 1, dim=1).values for _, block in blocks(points, points, distance)]
    return torch.cat(found)


def check_k(k: int, *counts: int) -> None:
    if not 1 <= k < min(counts):
        raise MetricError(f"k = {k} neighbours: expected 1 .. {min(counts) - 1} for {min(counts)} samples")


def euclid(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b)
