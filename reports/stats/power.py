"""The power of a number of seeds: detectable factors, and how many pairs a question needs.

With n pairs whose log ratios spread by sd, the t statistic of a true factor F is noncentral t with n - 1
degrees of freedom and noncentrality log F sqrt(n) / sd. Nothing here is simulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, nctdtrinc

from reports.stats.student import CONFIDENCE, t_quantile

POWER = 0.80
MOST_PAIRS = 1000
LARGEST = 700.0
"""Logarithm of the largest factor: what is beyond has no number."""


@dataclass(frozen=True)
class SeedSpread:
    """Standard deviation of log ratios over pairs of seeds, with its interval (chi squared)."""

    sd: float
    low: float
    high: float
    n: int
    paired: bool
    """Else the seeds were not shared: sd is that of the difference of two independent runs."""


def detectable(error: float, degrees: float, confidence: float, power: float = POWER) -> float:
    """Return the smallest factor that an interval with this standard error distinguishes from 1, in `power`
    of all cases."""
    return math.exp(min(_distance(error, degrees, confidence, power), LARGEST))


def detectable_with(
    n: int, sd: float, confidence: float, power: float = POWER, *, paired: bool = True
) -> float:
    """Return the same of n pairs, or of two arms of n seeds each, whose log ratios spread by sd."""
    return detectable(sd / math.sqrt(n), degrees(n, paired), confidence, power)


def pairs_needed(
    distance: float, sd: float, confidence: float, power: float = POWER, *, paired: bool = True
) -> int | None:
    """Return the fewest pairs, from 2, that resolve a true log ratio `distance` away from the bound in
    question, in `power` of all cases; None if a thousand do not."""

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
    critical = t_quantile(degrees, confidence)
    return float(nctdtrinc(degrees, 1 - power, critical)) * error


def degrees(n: int, paired: bool) -> int:
    return n - 1 if paired else 2 * (n - 1)


def spread_of(d: np.ndarray, *, paired: bool = True, confidence: float = CONFIDENCE) -> SeedSpread:
    """Return the spread of log ratios, of at least two; of a single arm's log times for `paired=False`,
    where two independent runs differ by sqrt 2 of it."""
    n, scale = len(d), 1.0 if paired else math.sqrt(2)
    sd = float(d.std(ddof=1)) * scale
    above, below = (float(chdtri(n - 1, tail)) for tail in ((1 - confidence) / 2, (1 + confidence) / 2))
    return SeedSpread(sd, sd * math.sqrt((n - 1) / above), sd * math.sqrt((n - 1) / below), n, paired)
