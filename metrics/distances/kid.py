"""KID, the kernel Inception distance (Binkowski et al. 2018): unbiased, so it can be negative, and noisy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from metrics.arrays import as_given
from metrics.intervals import around
from metrics.value import MetricError, Value


def kernel_distance(
    real: Any, fake: Any, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> Value:
    """Return the mean unbiased MMD^2 with the kernel (x.y / d + 1)^3 over random subsets of both sets.

    The subsets are torch-fidelity's (metric_kid.py, same seed and order), in float64 instead of its float32.
    If a set has at most `subset_size` samples, subsets of half the smaller set are drawn, which keeps the
    mean unbiased.

    Overlapping subsets vary too little to serve as replicates. With m of n samples per subset, the variance
    of the mean is m / (n - m) times theirs (the delete-d jackknife, Shao and Wu 1989). Raises `MetricError`
    for bad features, fewer than 4 samples, or fewer than 2 subsets.
    """
    x, y = as_given(real, fake, least=4)
    if subsets < 2 or subset_size < 2:
        raise MetricError(
            f"kernel_distance: subsets = {subsets}, subset_size = {subset_size}; both must be at least 2"
        )
    n = min(len(x), len(y))
    size = subset_size if subset_size < n else n // 2
    random = np.random.RandomState(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        fakes = y[random.choice(len(y), size, replace=False)]
        reals = x[random.choice(len(x), size, replace=False)]
        values[i] = squared_mmd(reals.astype(np.float64, copy=False), fakes.astype(np.float64, copy=False))
    error = math.sqrt(size / (n - size) * np.var(values, ddof=1))
    return around(float(values.mean()), error, len(y))


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased MMD^2 of two float64 arrays (m, d) and (n, d) with at least 2 rows each."""
    return float(_mean_of_pairs(x) + _mean_of_pairs(y) - 2 * _kernel(x, y).mean())


def _mean_of_pairs(x: np.ndarray) -> float:
    """Return the mean kernel over pairs of different rows."""
    kernel = _kernel(x, x)
    return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3
