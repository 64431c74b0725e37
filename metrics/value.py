"""What every distance returns, and the one error that it raises."""

from __future__ import annotations

from dataclasses import dataclass


class MetricError(ValueError):
    """Features, images or weights that cannot be measured: one sentence that names what is wrong."""


@dataclass(frozen=True, eq=False)
class Value(float):
    """A number with its interval: a float that compares, formats and computes as its mean.

    `low` and `high` bound a 95 % interval and are None where one evaluation cannot tell (its docstring says why);
    `n` is the number of generated samples that were measured.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    def __new__(cls, mean: float, low: float | None = None, high: float | None = None, n: int = 0) -> Value:
        return super().__new__(cls, mean)

    def __float__(self) -> float:
        return self.mean
