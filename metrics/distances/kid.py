"""KID, the kernel distance (Binkowski et al. 2018): unbiased, so it may be negative, and noisy."""

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

    The subsets are torch-fidelity's (metric_kid.py: same seed, same order); the arithmetic is float64, there
    float32. If a set has no more than `subset_size` samples, subsets of half the smaller set are drawn, which
    keeps the mean unbiased. Overlapping subsets vary too little to serve as replicates: with m of n samples
    in a subset the variance of the mean is m / (n - m) times theirs (the delete-d jackknife, Shao and Wu
    1989). Raises `MetricError` for bad features, fewer than 4 samples, or fewer than 2 subsets.
    """
    x, y = as_given(real, fake, least=4)
    if subsets < 2 or subset_size < 2:
        raise MetricError(f"kernel_distance: {subsets} subsets of {subset_size}; at least 2 of 2 are needed")
    n = min(len(x), len(y))
    size = subset_size if subset_size < n else n // 2
    random = np.random.RandomState(seed)
    found = np.empty(subsets)
    for i in range(subsets):
        fakes = y[random.choice(len(y), size, replace=False)]
        reals = x[random.choice(len(x), size, replace=False)]
        found[i] = squared_mmd(reals.astype(np.float64, copy=False), fakes.astype(np.float64, copy=False))
    error = math.sqrt(size / (n - size) * np.var(found, ddof=1))
    return around(float(found.mean()), error, len(y))


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased MMD^2 of two float64 arrays (m, d) and (n, d), at least 2 rows each."""
    return float(_apart(x) + _apart(y) - 2 * _kernel(x, y).mean())


def _apart(x: np.ndarray) -> float:
    """Return the mean kernel of different rows."""
    kernel = _kernel(x, x)
    return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3
