"""The value of a metric with its interval, and the error that metrics raise."""

from __future__ import annotations

from dataclasses import dataclass


class MetricError(ValueError):
    """An error in features, media or weights, described in one sentence for the user."""


@dataclass(frozen=True)
class Value:
    """A number with its interval; `float(value)` is its mean.

    `low` and `high` bound a 95 % interval. They are None if one evaluation does not determine an interval;
    the docstring of the distance gives the reason. `n` is the number of generated samples measured.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    def __float__(self) -> float:
        return self.mean
