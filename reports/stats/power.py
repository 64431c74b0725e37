"""The power of a number of seeds: detectable factors, and the number of pairs that a question needs.

For n pairs whose log ratios have the standard deviation sd, the t statistic of a true factor F is noncentral
t with n - 1 degrees of freedom and noncentrality log F sqrt(n) / sd. All values are computed from it, without
simulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, nctdtrinc

from metrics.intervals import student
from reports.stats.t_interval import CONFIDENCE

POWER = 0.80
MOST_PAIRS = 1000
FAR = 1000.0
"""Critical value from which noncentral t is replaced by its limit; scipy is slow and wrong there."""
LARGEST = 700.0
"""Logarithm of the largest factor, below the overflow of float64."""


@dataclass(frozen=True)
class SeedSpread:
    """The standard deviation of log ratios over pairs of seeds, with its chi-squared interval."""

    sd: float
    low: float
    high: float
    n: int
    paired: bool
    """If False, sd is that of the difference of two independent runs."""


def detectable(error: float, degrees: float, confidence: float, power: float = POWER) -> float:
    """Return the smallest factor that an interval with this standard error distinguishes from 1."""
    return math.exp(min(_distance(error, degrees, confidence, power), LARGEST))


def detectable_with(
    n: int, sd: float, confidence: float, power: float = POWER, *, paired: bool = True
) -> float:
    """Return the smallest factor that n pairs, or two arms of n seeds each, distinguish from 1.

    `sd` is the standard deviation of the log ratios.
    """
    return detectable(sd / math.sqrt(n), degrees(n, paired), confidence, power)


def pairs_needed(
    distance: float, sd: float, confidence: float, power: float = POWER, *, paired: bool = True
) -> int | None:
    """Return the fewest pairs, at least 2, that resolve a true log ratio `distance` away from a bound.

    None if more than `MOST_PAIRS` are needed.
    """

    def enough(n: int) -> bool:
        return _distance(sd / math.sqrt(n), degrees(n, paired), confidence, power) <= distance

    low, high = 2, MOST_PAIRS
    if distance <= 0 or not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _distance(error: float, degrees: float, confidence: float, power: float) -> float:
    critical = student(degrees, confidence)
    if critical > FAR:
        # The normal part of noncentral t does not count there: t = shift / sqrt(chi-squared / degrees).
        return critical * math.sqrt(chdtri(degrees, 1 - power) / degrees) * error
    return float(nctdtrinc(degrees, 1 - power, critical)) * error


def degrees(n: int, paired: bool) -> int:
    return n - 1 if paired else 2 * (n - 1)


def spread_of(d: np.ndarray, *, paired: bool = True, confidence: float = CONFIDENCE) -> SeedSpread:
    """Return the spread of at least two log ratios.

    With `paired=False`, d holds the log times of a single arm; two independent runs differ by sqrt 2 of it.
    """
    n, scale = len(d), 1.0 if paired else math.sqrt(2)
    sd = float(d.std(ddof=1)) * scale
    above, below = (float(chdtri(n - 1, tail)) for tail in ((1 - confidence) / 2, (1 + confidence) / 2))
    return SeedSpread(sd, sd * math.sqrt((n - 1) / above), sd * math.sqrt((n - 1) / below), n, paired)
