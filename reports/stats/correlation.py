"""Rank correlation and slope of one quantity against another over a few encoders or sizes, with intervals.

The unit of a rank correlation is the encoder (or size), with its mean over seeds. Seeds of one encoder share
its x, so they are no further evidence of an order of encoders. The interval of Spearman's rho is Bonett and
Wright's (Psychometrika 65, 2000). It needs no resampling and keeps its coverage with few points. A bootstrap
of fewer than 20 points would be too narrow.

    tanh(atanh rho -+ z sqrt((1 + rho^2 / 2) / (n - 3)))

The formula has no interval for a rho of 1. Its high end is then 1, and its low end is that of the next lower
rho possible with n points. The permutation test's p is exact up to eight points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from scipy.special import ndtri, stdtr

from reports.stats.t_interval import CONFIDENCE, t_interval

LEAST = 4
"""The fewest points for an interval, which divides by n - 3."""
EXACT = 8
"""The most points for which all orders are counted; above, p comes from Student's t."""


@dataclass(frozen=True)
class Rank:
    """Spearman's rho over n points; None if there are too few points."""

    rho: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None
    """The two-sided p-value of the hypothesis that all orders are equally likely."""
    without: tuple[float, float] | None
    """Smallest and largest rho when one point is left out."""


@dataclass(frozen=True)
class Slope:
    """d log y / d log x (or d log y / d x), with a t interval.

    The ends are None if no degrees of freedom are left for the error."""

    estimate: float
    low: float | None
    high: float | None
    n: int
    """The number of runs."""
    seeds: int


def spearman(x: Sequence[float], y: Sequence[float], confidence: float = CONFIDENCE) -> Rank:
    """Return Spearman's rho of paired values, with its interval and p-value (see the module).

    Ties get their mean rank, as in scipy.stats.spearmanr.
    """
    a, b = _ranks(x), _ranks(y)
    n = len(a)
    rho = _pearson(a, b)
    if rho is None:
        return Rank(None, None, None, n, None, None)
    low, high = _interval(rho, n, confidence) if n >= LEAST else (None, None)
    return Rank(rho, low, high, n, _p_value(a, b, rho), _left_out(np.asarray(x), np.asarray(y)))


def slope(
    x: Sequence[float], y: Sequence[float], seeds: Sequence[int], confidence: float = CONFIDENCE
) -> Slope | None:
    """Return the slope b of y = a + b x + u_seed + e over runs; None if x does not vary.

    The seed is a random intercept u. If every seed has run every x, the best linear estimate does not depend
    on the variance of u. It is the least-squares slope after subtracting each seed's mean, with
    n - seeds - 1 degrees of freedom. The same estimate is used if runs are missing; it then ignores the
    differences between seeds.
    """
    a, b = _within(x, seeds), _within(y, seeds)
    scale, n, count = float(a @ a), len(a), len(set(seeds))
    if scale <= 1e-18:
        return None
    estimate = float(a @ b) / scale
    degrees = n - count - 1
    if degrees < 1:
        return Slope(estimate, None, None, n, count)
    error = math.sqrt(float(np.sum((b - estimate * a) ** 2)) / degrees / scale)
    return Slope(estimate, *t_interval(estimate, error, degrees, confidence), n, count)


def _within(values: Sequence[float], seeds: Sequence[int]) -> np.ndarray:
    """Return the values minus the mean of their seed."""
    x, own = np.asarray(values, dtype=float), np.asarray(seeds)
    return x - np.array([x[own == seed].mean() for seed in own])


def _ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    # A third of the time in which a report starts, which few reports need.
    from scipy.stats import rankdata

    return rankdata(values)


def _pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return the correlation; None for fewer than three points, and if one side is constant."""
    x, y = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return None if len(a) < 3 or scale == 0 else min(1.0, max(-1.0, float(x @ y) / scale))


def _interval(rho: float, n: int, confidence: float) -> tuple[float, float]:
    # The largest rho below 1: one swap of neighbours.
    most = 1 - 12 / (n * (n * n - 1))
    near = max(-most, min(most, rho))
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt((1 + near**2 / 2) / (n - 3))
    low, high = math.tanh(math.atanh(near) - half), math.tanh(math.atanh(near) + half)
    return (-1.0 if rho < -most else low), (1.0 if rho > most else high)


def _p_value(a: np.ndarray, b: np.ndarray, rho: float) -> float:
    n = len(a)
    if n > EXACT:
        t = abs(rho) * math.sqrt((n - 2) / max(1 - rho**2, 1e-15))
        return 2 * float(stdtr(n - 2, -t))
    x, y = a - a.mean(), b - b.mean()
    reached = np.abs(y[_orders(n)] @ x) >= abs(float(x @ y)) - 1e-9
    return float(reached.mean())


@cache
def _orders(n: int) -> np.ndarray:
    return np.array(list(permutations(range(n))), dtype=np.int8)


def _left_out(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    found = [rho for rho in _without_each(x, y) if rho is not None]
    return (min(found), max(found)) if found and len(x) >= LEAST else None


def _without_each(x: np.ndarray, y: np.ndarray) -> Iterator[float | None]:
    for left_out in range(len(x)):
        kept = np.arange(len(x)) != left_out
        yield _pearson(_ranks(x[kept]), _ranks(y[kept]))
