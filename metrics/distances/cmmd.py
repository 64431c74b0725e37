"""CMMD (Jayasumana et al. 2024): the MMD of CLIP embeddings, without Gaussian assumptions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from metrics.arrays import BLOCK, as_pair
from metrics.intervals import around
from metrics.value import MetricError, Value

SIGMA, SCALE = 10.0, 1000.0


def cmmd(real: Any, fake: Any) -> Value:
    """Return 1000 times the biased MMD^2 between embeddings, with a Gaussian kernel of sigma 10.

    Embeddings are scaled to unit norm (google-research/cmmd, distance.py and embedding.py). The interval is
    normal, from the influence of each sample. It ignores the bias, which is of order 1/N. Raises
    `MetricError` for bad features and for a zero vector.
    """
    x, y = (
        _unit(features, name) for features, name in zip(as_pair(real, fake), ("real", "fake"), strict=True)
    )
    within_x, within_y = _mean_kernel(x, x), _mean_kernel(y, y)
    x_to_y, y_to_x = _mean_kernel(x, y), _mean_kernel(y, x)
    value = within_x.mean() + within_y.mean() - 2 * x_to_y.mean()
    variance = np.var(within_x - x_to_y, ddof=1) / len(x) + np.var(within_y - y_to_x, ddof=1) / len(y)
    return around(SCALE * float(value), SCALE * 2 * math.sqrt(variance), len(y))


def _unit(features: np.ndarray, name: str) -> np.ndarray:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if not norms.all():
        raise MetricError(
            f"{name} features have only zeros in row {np.argmin(norms)}; cmmd needs rows of non-zero norm"
        )
    return features / norms


def _mean_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the mean kernel (len(x),) of each row of x with all rows of y."""
    # |x - y|^2 = 2 - 2 x.y for unit vectors.
    rows = range(0, len(x), BLOCK)
    return np.concatenate([np.exp((x[i : i + BLOCK] @ y.T - 1) / SIGMA**2).mean(axis=1) for i in rows])
