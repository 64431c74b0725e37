"""A mean over seeds with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reports.stats.t_interval import t_interval


class Mean(NamedTuple):
    n: int
    mean: float
    sd: float | None
    """The standard deviation with denominator n - 1; None for one value, like the ends."""
    low: float | None
    high: float | None
    """The end of Student's t interval with n - 1 degrees of freedom."""


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of at least one value, with its interval."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Mean(n, mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    return Mean(n, mean, sd, *t_interval(mean, sd, n - 1, n=n))


def geometric_mean_of(values: Sequence[float]) -> Mean:
    """Return the geometric mean of values above 0, with Student's interval of their logs and no `sd`."""
    logs = mean_of([math.log(value) for value in values])
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Mean(logs.n, math.exp(logs.mean), None, low, high)
