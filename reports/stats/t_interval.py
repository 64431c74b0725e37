"""Student's t interval: the interval of every mean, speed-up and slope in a report."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95

Values = TypeVar("Values", float, np.ndarray)


def t_interval(
    mean: Values, spread: Values, degrees: float, confidence: float = CONFIDENCE, *, n: int = 1
) -> tuple[Values, Values]:
    """Return the ends of mean -+ t * spread / sqrt(n), t being the quantile for these degrees of freedom.

    `spread` is the standard deviation of n values or, with n = 1, a standard error.
    """
    half = t_quantile(degrees, confidence) * spread / math.sqrt(n)
    return mean - half, mean + half


def t_quantile(degrees: float, confidence: float = CONFIDENCE) -> float:
    """Return the two-sided critical value of Student's t."""
    return float(stdtrit(degrees, (1 + confidence) / 2))
