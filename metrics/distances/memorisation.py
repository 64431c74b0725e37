"""Memorisation: generated samples that copy the training set, which Frechet distances reward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metrics.arrays import as_pair
from metrics.distances.neighbours import blocks, euclid
from metrics.intervals import share
from metrics.value import Value


def memorisation(train: Any, fake: Any) -> Value:
    """Return the share of fake samples no farther from their nearest training sample than that one is from
    its nearest neighbour.

    One minus the authenticity of Alaa et al. (2022), as in dgm-eval: 1 for copies. Samples of the same
    distribution do not give 0, so compare with the value of held-out data against the training set.
    Neighbours are found in float32 and measured in float64; the interval is Wilson's, training set fixed.
    Raises `MetricError` for bad features.
    """
    x, y = map(torch.from_numpy, as_pair(train, fake))
    nearest = _nearest(y.float(), x.float())
    others = _nearest(x.float(), x.float(), but_itself=True)
    own = (x - x[others]).norm(dim=1)
    copies = (y - x[nearest]).norm(dim=1) <= own[nearest]
    return share(copies.numpy(), len(y))


def _nearest(rows: Tensor, columns: Tensor, *, but_itself: bool = False) -> Tensor:
    """(N,): the column nearest to each row."""
    found = []
    for part, distance in blocks(rows, columns, euclid):
        if but_itself:
            distance[:, part].fill_diagonal_(torch.inf)
        found.append(distance.argmin(dim=1))
    return torch.cat(found)
