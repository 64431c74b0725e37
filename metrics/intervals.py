"""95 % intervals for means, shares and ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from metrics.value import Value

Z = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


def share(inside: np.ndarray, n: int) -> Value:
    """Return the share of true entries with Wilson's interval (Wilson 1927), which stays within [0, 1]."""
    p = float(np.mean(inside))
    return Value(p, *wilson(p, len(inside)), n)


def wilson(p: float, count: float, quantile: float = Z) -> tuple[float, float]:
    """Return the ends of Wilson's interval of a share p among `count` independent entries."""
    centre = (p + quantile**2 / (2 * count)) / (1 + quantile**2 / count)
    spread = math.sqrt(p * (1 - p) / count + quantile**2 / (4 * count**2))
    half = quantile / (1 + quantile**2 / count) * spread
    return min(centre - half, p), max(centre + half, p)


def around(mean: float, error: float, n: int, *, quantile: float = Z) -> Value:
    """Return the mean with the interval mean +- quantile * error."""
    mean, half = float(mean), float(quantile * error)
    return Value(mean, mean - half, mean + half, n)


def of_replicates(values: Sequence[float], n: int) -> Value:
    """Return the mean of independent replicates with Student's t interval; a single one has no interval."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Value(mean, n=n)
    return around(mean, float(np.std(values, ddof=1)) / math.sqrt(count), n, quantile=student(count - 1))


def student(degrees: float, confidence: float = 0.95) -> float:
    """Return the two-sided critical value of Student's t distribution with these degrees of freedom.

    >>> round(student(2), 4), round(student(2, 0.9), 4)
    (4.3027, 2.92)
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))


def of_ratio(numerator: np.ndarray, denominator: np.ndarray) -> Value:
    """Return sum(numerator) / sum(denominator) over independent units; n is the number of units.

    All values are non-negative. The error is by linearisation (Cochran 1977, 6.4).
    """
    units, total = len(denominator), float(np.sum(denominator))
    ratio = float(np.sum(numerator)) / total
    if units < 2:
        return Value(ratio, n=units)
    error = math.sqrt(units / (units - 1) * float(np.sum((numerator - ratio * denominator) ** 2))) / total
    half = float(Z * error)
    return Value(ratio, max(ratio - half, 0.0), ratio + half, units)


def of_jackknife(estimate: float, left_out: np.ndarray) -> Value:
    """Return a statistic of n independent units with its jackknife interval (Tukey 1958).

    `left_out` (n,) holds the leave-one-out values.
    """
    n = len(left_out)
    return around(estimate, math.sqrt((n - 1) / n * float(np.sum((left_out - np.mean(left_out)) ** 2))), n)
