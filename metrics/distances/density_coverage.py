"""Density and coverage (Naeem et al. 2020): precision and recall that are robust to outliers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from metrics.arrays import as_pair
from metrics.distances.neighbours import blocks, check_k, euclid, radii
from metrics.intervals import around, share
from metrics.value import Value


class DensityCoverage(NamedTuple):
    """Density, which is at least 0, and coverage in [0, 1]."""

    density: Value
    coverage: Value


def density_coverage(real: Any, fake: Any, *, k: int = 5) -> DensityCoverage:
    """Return density and coverage, with distances in float64.

    A real sample's ball extends to its k-th nearest real neighbour, edge excluded, as in the authors' prdc.
    Density is the mean number of real balls that contain a fake sample, divided by k; it may exceed 1.
    Coverage is the share of real balls that contain a fake sample. The intervals (normal for density,
    Wilson's for coverage) hold the other set fixed. Raises `MetricError` for bad features or k.
    """
    x, y = map(torch.from_numpy, as_pair(real, fake))
    check_k(k, len(x))
    radius = radii(x, k, euclid)
    covered = torch.zeros(len(x), dtype=torch.bool)
    balls = torch.zeros(len(y), dtype=torch.float64)
    for part, distance in blocks(x, y, euclid):
        inside = distance < radius[part, None]
        covered[part] = inside.any(dim=1)
        balls += inside.sum(dim=0)
    each = balls.numpy() / k
    density = around(float(each.mean()), float(each.std(ddof=1)) / np.sqrt(len(y)), len(y))
    return DensityCoverage(density, share(covered.numpy(), len(y)))
