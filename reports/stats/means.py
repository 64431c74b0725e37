"""A mean over seeds with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from reports.stats.speedup import CONFIDENCE


class Mean(NamedTuple):
    n: int
    mean: float
    sd: float | None
    """n - 1 in its denominator; None for one value, and so are the ends."""
    low: float | None
    high: float | None
    """Student's t with n - 1 degrees of freedom."""


def mean_of(values: Sequence[float]) -> Mean:
    """Of at least one value."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Mean(n, mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(n)
    return Mean(n, mean, sd, mean - half, mean + half)
