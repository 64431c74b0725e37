"""95 % intervals of means, shares and ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from metrics.value import Value

Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


def share(inside: np.ndarray, n: int) -> Value:
    """Return the share of true entries with Wilson's interval (Wilson 1927), which stays within 0 .. 1."""
    p, count = float(np.mean(inside)), len(inside)
    middle = (p + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(p * (1 - p) / count + Z**2 / (4 * count**2))
    return Value(p, min(middle - half, p), max(middle + half, p), n)


def around(mean: float, error: float, n: int, *, quantile: float = Z) -> Value:
    """Return mean -+ quantile * error."""
    mean, half = float(mean), float(quantile * error)
    return Value(mean, mean - half, mean + half, n)


def of_replicates(values: Sequence[float], n: int) -> Value:
    """Return the mean of independent replicates with Student's t interval, and no interval for a single
    one."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Value(mean, n=n)
    return around(mean, float(np.std(values, ddof=1)) / math.sqrt(count), n, quantile=student(count - 1))


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def of_ratio(above: np.ndarray, below: np.ndarray) -> Value:
    """Return sum(above) / sum(below) over independent units of non-negative values; n counts the units.

    The error is by linearisation (Cochran 1977, 6.4).
    """
    units, total = len(below), float(np.sum(below))
    ratio = float(np.sum(above)) / total
    if units < 2:
        return Value(ratio, n=units)
    error = math.sqrt(units / (units - 1) * float(np.sum((above - ratio * below) ** 2))) / total
    half = float(Z * error)
    return Value(ratio, max(ratio - half, 0.0), ratio + half, units)


def of_jackknife(whole: float, without: np.ndarray) -> Value:
    """Return a statistic of n independent units with the jackknife error of its n leave-one-out values (Tukey
    1958).
    """
    n = len(without)
    return around(whole, math.sqrt((n - 1) / n * float(np.sum((without - np.mean(without)) ** 2))), n)
