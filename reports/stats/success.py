"""Success of one arm and of two, over training seeds and starts.

One network against another on the same starts is a paired comparison of shares. With b starts at which only
the first succeeds, and c at which only the second does:

    p value     2 min(P(X <= b), P(X >= b)), at most 1, X ~ Binomial(b + c, 1/2)     exact (McNemar 1947)
    interval    all d with |b - c - n d| <= z sqrt(n (2 q(d) + d (1 - d)))           score (Tango 1998)

q(d) is the maximum likelihood estimate of the share of c if the shares differ by d. The interval may exclude
0 where p is a little above 0.05, since the test is conservative. Verdicts use p.

Several networks of one arm that meet the same starts are a crossed design: y_se = p + a_s + b_e + r_se, with
training seeds s = 1..S and starts e = 1..E. The variance of its mean has three parts, and with MS the mean
squares of the two-way layout (Searle, Casella and McCulloch 1992, 4.3),

    Var(mean) = (MS_seeds + MS_starts - MS_rest) / (S E)

with Satterthwaite's degrees of freedom (1946). It is at least MS_seeds / (S E), with S - 1 degrees, and
MS_starts / (S E), with E - 1, which estimate parts of it. A share gets Wilson's interval for the number of
independent episodes that has the same variance (Korn and Graubard 1998), a difference Student's. If all
networks have equal results, the starts of one seed give the interval. More starts do not make up for few
seeds, nor the reverse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import bdtr, ndtr, stdtr

from metrics.intervals import Z, student, wilson
from reports.stats.t_interval import CONFIDENCE, t_interval

EDGE = 1e-9
"""Distance from -1 and 1 up to which the ends of an interval are sought."""

ROUNDING = 1e-20
"""Variance up to which results are equal; sums of rounded means leave less."""


class Pairs(NamedTuple):
    """Two arms on the same starts; the difference is the first minus the second."""

    n: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    """Ends of Tango's score interval at 95 %."""
    p: float
    """Two-sided p value of the exact McNemar test."""


class Levels(NamedTuple):
    """A mean over training seeds and starts; for two arms, the mean difference."""

    seeds: int
    starts: int
    mean: float
    low: float | None
    high: float | None
    """None for a single training seed, because networks of other seeds may succeed elsewhere, and for a
    single start."""
    seed_sd: float | None
    """Standard deviation over training seeds, on infinitely many starts; None for one seed or start."""
    start_sd: float | None
    """Standard deviation over starts, for infinitely many training seeds; None for one seed or start."""
    error: float | None = None
    """Standard error of a difference; None if the results do not vary."""
    degrees: float = 1.0
    only: tuple[int, int] | None = None
    """Starts of one training seed at which only the first arm succeeds, and only the second, if these alone
    give the interval of a difference."""

    def p_of(self, difference: float) -> float:
        """Return the two-sided p value of a true difference, by the test of the interval; 1 without one."""
        if self.only is not None:
            return float(2 * ndtr(-abs(_score(*self.only, self.starts, difference))))
        if not self.error:
            return 1.0
        return float(2 * stdtr(self.degrees, -abs(self.mean - difference) / self.error))


def paired(first: Sequence[bool], second: Sequence[bool]) -> Pairs:
    """Compare two arms start by start; at least one start."""
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    n = len(a)
    low, high = score_interval(only_first, only_second, n)
    difference = (only_first - only_second) / n
    return Pairs(n, only_first, only_second, difference, low, high, mcnemar(only_first, only_second))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of the exact McNemar test.

    >>> mcnemar(0, 6), mcnemar(3, 3)
    (0.03125, 1.0)
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * float(bdtr(fewer, n, 0.5)))


def score_interval(only_first: int, only_second: int, n: int, z: float = Z) -> tuple[float, float]:
    """Return Tango's score interval for the difference of two paired shares."""

    difference = (only_first - only_second) / n

    def end(edge: float, side: int) -> float:
        """Return where the score is `side` * z, between the difference and an edge; the edge if nowhere."""

        def excess(d: float) -> float:
            return side * _score(only_first, only_second, n, d) - z

        inner = edge * (1 - EDGE)
        if side * (difference - inner) <= 0 or excess(inner) <= 0:
            return edge
        # Any: scipy returns a tuple if it is asked for details.
        root: Any = brentq(excess, inner, difference, xtol=1e-12)
        return float(root)

    return end(-1.0, 1), end(1.0, -1)


def _score(only_first: int, only_second: int, n: int, d: float) -> float:
    """Return the score statistic of a difference d, with the nuisance share at its maximum likelihood."""
    distance = only_first - only_second - n * d
    if distance == 0:
        return 0.0
    linear = -only_first - only_second + (2 * n - only_first + only_second) * d
    root = math.sqrt(max(linear**2 + 8 * n * only_second * d * (1 - d), 0.0))
    q = (root - linear) / (4 * n)
    return distance / math.sqrt(max(n * (2 * q + d * (1 - d)), EDGE**2))


def success_levels(successes: np.ndarray) -> Levels:
    """Return the share of successes, bool (seeds, starts), with an interval over both levels."""
    seeds, starts = successes.shape
    mean, spread = float(successes.mean()), _spread(successes)
    if spread is None:
        return Levels(seeds, starts, mean, None, None, None, None)
    # Equal results have no measurable spread. The starts are then taken as the only independent episodes.
    count, quantile = float(starts), Z
    if spread.variance > 0:
        count = min(mean * (1 - mean) / spread.variance, seeds * starts)
        quantile = student(spread.degrees, CONFIDENCE)
    low, high = wilson(mean, count, quantile)
    return Levels(seeds, starts, mean, low, high, spread.seed_sd, spread.start_sd)


def difference_levels(first: np.ndarray, second: np.ndarray) -> Levels:
    """Return the mean difference of two arms, bool (seeds, starts) each, whose seeds are paired."""
    difference = first.astype(np.float64) - second
    found = levels_of(difference)
    if found.seed_sd is None or found.error is not None:
        low, high = (None if end is None else min(max(end, -1.0), 1.0) for end in (found.low, found.high))
        return found._replace(low=low, high=high)
    # As for one arm: the starts of one training seed are then the only independent pairs.
    row = max(difference, key=lambda row: np.abs(row).sum())
    only = int((row > 0).sum()), int((row < 0).sum())
    low, high = score_interval(*only, found.starts)
    return found._replace(low=low, high=high, only=only)


def levels_of(values: np.ndarray) -> Levels:
    """Return the mean of numbers (seeds, starts) with an interval over both levels.

    A single seed or start, and numbers that vary over neither, have no interval.
    """
    seeds, starts = values.shape
    mean, spread = float(values.mean()), _spread(values)
    if spread is None:
        return Levels(seeds, starts, mean, None, None, None, None)
    sds = spread.seed_sd, spread.start_sd
    if not spread.variance:
        return Levels(seeds, starts, mean, None, None, *sds)
    error = math.sqrt(spread.variance)
    return Levels(seeds, starts, mean, *t_interval(mean, error, spread.degrees), *sds, error, spread.degrees)


class _Spread(NamedTuple):
    """The variance of the mean of a crossed design, its degrees of freedom, and the levels'."""

    variance: float
    degrees: float
    seed_sd: float
    start_sd: float


def _spread(y: np.ndarray) -> _Spread | None:
    """Return the spread of (seeds, starts); None for a single seed or start."""
    seeds, starts = y.shape
    if min(seeds, starts) < 2:
        return None
    rows, columns, mean = y.mean(axis=1, keepdims=True), y.mean(axis=0, keepdims=True), y.mean()
    of_seeds = starts * float(((rows - mean) ** 2).sum()) / (seeds - 1)
    of_starts = seeds * float(((columns - mean) ** 2).sum()) / (starts - 1)
    rest = float(((y - rows - columns + mean) ** 2).sum()) / ((seeds - 1) * (starts - 1))
    squares = ((of_seeds, seeds - 1), (of_starts, starts - 1), (rest, (seeds - 1) * (starts - 1)))
    total, (largest, degrees) = of_seeds + of_starts - rest, max(squares[:2])
    if total > largest:
        degrees = total**2 / sum(square**2 / count for square, count in squares)
    variance = max(total, largest) / (seeds * starts)
    return _Spread(
        variance=variance if variance > ROUNDING else 0.0,
        degrees=degrees,
        seed_sd=math.sqrt(max(of_seeds - rest, 0.0) / starts),
        start_sd=math.sqrt(max(of_starts - rest, 0.0) / seeds),
    )
