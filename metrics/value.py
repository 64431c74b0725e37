"""What every distance returns, and the only error that it raises."""

from __future__ import annotations

from dataclasses import dataclass


class MetricError(ValueError):
    """Features, images or weights that cannot be measured, in one sentence that names the fault."""


@dataclass(frozen=True)
class Value:
    """A number with its interval; `float(value)` is its mean.

    `low` and `high` bound a 95 % interval. They are None if one evaluation does not determine it; the
    distance's docstring says why. `n` is the number of generated samples measured.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    def __float__(self) -> float:
        return self.mean
