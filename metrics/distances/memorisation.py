"""Memorisation: the share of generated samples that copy the training set, which Frechet distances reward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metrics.arrays import as_pair
from metrics.distances.neighbours import blocks, euclid
from metrics.intervals import share
from metrics.value import Value


def memorisation(train: Any, fake: Any) -> Value:
    """Return the share of fake samples at least as close to a training sample as its nearest neighbour is.

    Each fake sample is compared with its nearest training sample. The value is 1 - authenticity (Alaa et al.
    2022), as in dgm-eval: 1 for copies. Samples of the same distribution do not give 0, so compare with the
    value of held-out data against the training set. Neighbours are found in float32 and measured in float64.
    The interval is Wilson's, with the training set fixed. Raises `MetricError` for bad features.
    """
    x, y = map(torch.from_numpy, as_pair(train, fake))
    nearest = _nearest(y.float(), x.float())
    others = _nearest(x.float(), x.float(), exclude_self=True)
    spacing = (x - x[others]).norm(dim=1)
    copies = (y - x[nearest]).norm(dim=1) <= spacing[nearest]
    return share(copies.numpy(), len(y))


def _nearest(rows: Tensor, columns: Tensor, *, exclude_self: bool = False) -> Tensor:
    """Return (N,) the index of the column nearest to each row."""
    nearest = []
    for part, distance in blocks(rows, columns, euclid):
        if exclude_self:
            distance[:, part].fill_diagonal_(torch.inf)
        nearest.append(distance.argmin(dim=1))
    return torch.cat(nearest)
