"""Student's t interval: the interval of every mean, speed-up and slope in a report."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np

from metrics.intervals import student

CONFIDENCE = 0.95

Values = TypeVar("Values", float, np.ndarray)


def t_interval(
    mean: Values, spread: Values, degrees: float, confidence: float = CONFIDENCE, *, n: int = 1
) -> tuple[Values, Values]:
    """Return the ends of mean -+ t * spread / sqrt(n), t being the quantile for these degrees of freedom.

    `spread` is the standard deviation of n values or, with n = 1, a standard error.
    """
    half = student(degrees, confidence) * spread / math.sqrt(n)
    return mean - half, mean + half
