"""Nearest neighbours: pairwise distances in blocks of rows, and distances to the k-th neighbour."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from metrics.arrays import BLOCK
from metrics.value import MetricError

Distance = Callable[[Tensor, Tensor], Tensor]
"""A function of rows (A, d) and (B, d) that returns distances (A, B)."""


def blocks(rows: Tensor, columns: Tensor, distance: Distance) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows as a slice, each with the distances of its rows to all columns."""
    for start in range(0, len(rows), BLOCK):
        part = slice(start, min(start + BLOCK, len(rows)))
        yield part, distance(rows[part], columns)


def radii(points: Tensor, k: int, distance: Distance) -> Tensor:
    """Return the distance (N,) of each point to its k-th nearest other point."""
    # k + 1, because each point is nearest to itself.
    parts = [block.kthvalue(k + 1, dim=1).values for _, block in blocks(points, points, distance)]
    return torch.cat(parts)


def check_k(k: int, *counts: int) -> None:
    """Raise `MetricError` unless every set of these sizes has k neighbours for each sample."""
    if not 1 <= k < min(counts):
        raise MetricError(f"k = {k} neighbours; expected 1 .. {min(counts) - 1} for {min(counts)} samples")


def euclid(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances."""
    return torch.cdist(a, b)
