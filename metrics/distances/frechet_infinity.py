"""FD-infinity: the Frechet distance without the bias of a finite number of samples (Chong and Forsyth 2020).

To first order, the distance between n real and m fake samples is biased by c/n + c'/m. Subsets of the same
share of both sets therefore follow a line in 1/m. Its intercept is the distance between the distributions.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from metrics.arrays import as_features, check_dims
from metrics.distances.frechet import Moments, frechet_distance, moments_of
from metrics.intervals import around, student
from metrics.value import MetricError, Value

GROUPS = 10
"""Number of groups of the jackknife."""
LEAST = 100
"""Smallest number of samples per side; with fewer, subsets are too small."""


def frechet_infinity(real: Any, fake: Any, *, points: int = 15, seed: int = 0) -> Value:
    """Return the Frechet distance extrapolated to infinitely many samples; it may be negative.

    It is unbiased to first order. As in dgm-eval, a random subset is drawn without replacement for each of
    `points` sizes, evenly spaced from min(5000, N / 10) to N, and a line in 1/size is fitted by least
    squares. If `real` is given as features, its subsets are the same share of it, which also corrects for its
    finite size. `Moments` stand for the full population.

    The points share samples, so their scatter about the line does not estimate its error. The interval is
    Student's t from a jackknife that leaves out a tenth of both sets at a time. The cost is 11 * points
    distances between covariances. Raises `MetricError` for bad features, fewer than 100 samples on a side
    given as features, or fewer than 2 points.
    """
    if points < 2:
        raise MetricError(f"frechet_infinity: points = {points}; expected 2 or more")
    random = np.random.default_rng(seed)
    first = real if isinstance(real, Moments) else _grouped(real, "real", random)
    second = _grouped(fake, "fake", random)
    check_dims(first.dim, second.dim)
    n = len(second.features)
    rows = [_at(first, second, size / n, random) for size in np.linspace(min(5000, n // 10), n, points)]
    intercepts = np.array([_intercept(column) for column in zip(*rows, strict=True)])
    left_out = intercepts[1:]
    error = math.sqrt((GROUPS - 1) / GROUPS * ((left_out - left_out.mean()) ** 2).sum())
    return around(float(intercepts[0]), error, n, quantile=student(GROUPS - 1))


class _Grouped(NamedTuple):
    """Features and the jackknife group of each row."""

    features: np.ndarray
    groups: np.ndarray

    @property
    def dim(self) -> int:
        return self.features.shape[1]


class _Point(NamedTuple):
    n: int
    distance: float


def _grouped(given: Any, name: str, random: np.random.Generator) -> _Grouped:
    features = as_features(given, name, least=LEAST)
    return _Grouped(features, random.permutation(len(features)) % GROUPS)


def _at(
    first: Moments | _Grouped, second: _Grouped, share: float, random: np.random.Generator
) -> list[_Point]:
    """Return the distance between subsets of one share: with all groups, then without each group."""
    reals = [first] * (1 + GROUPS) if isinstance(first, Moments) else _subset(first, share, random)
    fakes = _subset(second, share, random)
    return [
        _Point(fake.n, frechet_distance(real, fake).mean) for real, fake in zip(reals, fakes, strict=True)
    ]


def _subset(side: _Grouped, share: float, random: np.random.Generator) -> list[Moments]:
    """Return the moments of a random subset: with all groups, then without each group."""
    chosen = random.permutation(len(side.features))[: round(share * len(side.features))]
    parts = [moments_of(side.features[chosen[side.groups[chosen] == group]]) for group in range(GROUPS)]
    return [_merged(parts), *(_merged(parts[:group] + parts[group + 1 :]) for group in range(GROUPS))]


def _merged(parts: list[Moments]) -> Moments:
    merged = Moments()
    for part in parts:
        merged.merge(part)
    return merged


def _intercept(points: tuple[_Point, ...]) -> float:
    slope_and_intercept = np.polyfit(
        [1 / point.n for point in points], [point.distance for point in points], 1
    )
    return float(slope_and_intercept[1])
