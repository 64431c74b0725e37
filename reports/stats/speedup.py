"""Speed-ups between two arms and mean times of one, with intervals.

    d_i = log min(T_baseline,i, H) - log min(T_candidate,i, H)      for each seed i that both arms have
    S = exp(mean d),    interval exp(mean d -+ t_{n-1} sd(d) / sqrt n)

H, the horizon, is the smallest budget of any run. A censored time opens one end of the interval.

    baseline right-censored    E log min(T, H) <= E log T: the low end holds, the high end is infinite
    candidate right-censored   the high end holds, the low end is 0
    left-censored              T is at most the first evaluation, so the other end opens

If every pair is bounded on both sides in the same way, there is no estimate. With n of 3 to 10 a bootstrap
would be too narrow, so these are t intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np

from reports.stats.crossing import Censored
from reports.stats.t_interval import CONFIDENCE, t_interval

MOST = 300.0
"""The largest logarithm of a factor that is computed: exp overflows float64 at 709."""


class Time(NamedTuple):
    """The cost of one run up to the target, on one axis."""

    value: float
    censored: Censored = None


@dataclass(frozen=True)
class Speedup:
    """The ratio of the times of a baseline and a candidate; above 1 the candidate is faster."""

    estimate: float | None
    """None if every pair is censored on both sides."""
    low: float | None
    high: float | None
    """Ends of the interval: 0 and infinity are open ends, None means that n is too small for an interval."""
    n: int
    """The number of pairs; with unpaired seeds, of runs in the smaller arm."""
    paired: bool
    censored_baseline: int
    censored_candidate: int
    correlation: float | None
    """Pearson correlation of log times over pairs, which is what pairing gains.

    None for fewer than three pairs, or if all times are equal."""
    error: float | None = None
    """Standard error of the logarithm of the estimate; None if n is too small."""
    degrees: float = 0.0
    """Degrees of freedom of the interval."""

    @property
    def factor(self) -> float:
        """The estimate of a speed-up that has one."""
        assert self.estimate is not None
        return self.estimate

    @property
    def direction(self) -> str:
        """`faster` or `slower` if the interval excludes 1, else `unresolved`."""
        if self.low is not None and self.low > 1:
            return "faster"
        if self.high is not None and self.high < 1:
            return "slower"
        return "unresolved"


@dataclass(frozen=True)
class MeanTime:
    """The geometric mean of an arm's times to target, with its t interval (ends as in `Speedup`)."""

    estimate: float
    low: float | None
    high: float | None
    n: int
    right: int
    """Runs that never reached the target; their times are their budgets, so the mean is a lower bound."""
    left: int
    """Runs that were below the target at their first evaluation."""


def speedup(
    baseline: Mapping[int, Time],
    candidate: Mapping[int, Time],
    horizon: float = math.inf,
    confidence: float = CONFIDENCE,
) -> Speedup:
    """Return the speed-up of a candidate over a baseline; times by seed, all cut at the horizon.

    Times are paired by seed. If the arms share fewer than two seeds, the interval is Welch's for independent
    means.
    """
    shared = sorted(baseline.keys() & candidate.keys())
    paired = len(shared) >= min(2, len(baseline), len(candidate))
    base = [cut(baseline[seed], horizon) for seed in (shared if paired else sorted(baseline))]
    cand = [cut(candidate[seed], horizon) for seed in (shared if paired else sorted(candidate))]
    a, b = (np.log([time.value for time in times]) for times in (base, cand))
    error, degrees = _paired(a - b) if paired else _welch(a, b)
    low, high = _ends(a.mean() - b.mean(), error, degrees, confidence)
    above = _has(base, "right") or _has(cand, "left")
    below = _has(base, "left") or _has(cand, "right")
    low, high = _open(low, high, above=above, below=below)
    known = _known(zip(base, cand, strict=True) if paired else product(base, cand))
    return Speedup(
        estimate=float(np.exp(a.mean() - b.mean())) if known else None,
        low=low if known else None,
        high=high if known else None,
        n=min(len(a), len(b)),
        paired=paired,
        censored_baseline=sum(time.censored is not None for time in base),
        censored_candidate=sum(time.censored is not None for time in cand),
        correlation=_correlation(a, b) if paired else None,
        error=error,
        degrees=degrees,
    )


def with_critical(gain: Speedup, critical: float, floor: float = 0.0) -> Speedup:
    """Return a paired speed-up with the interval of another critical value than Student's.

    `floor` is the smallest standard deviation of log ratios to assume. Ends that censored times leave open
    stay open. Without a spread, or with an infinite critical value, there is no interval.
    """
    if gain.estimate is None or gain.error is None or gain.low is None or gain.high is None:
        return gain
    error = max(gain.error, floor / math.sqrt(gain.n))
    if error == 0 or math.isinf(critical):
        return replace(gain, low=None, high=None, error=error)
    half = critical * error
    low = 0.0 if gain.low == 0 else gain.estimate * math.exp(-min(half, MOST))
    high = math.inf if math.isinf(gain.high) else gain.estimate * math.exp(min(half, MOST))
    return replace(gain, low=low, high=high, error=error)


def mean_time(times: Iterable[Time], confidence: float = CONFIDENCE) -> MeanTime:
    """Return the geometric mean of at least one time."""
    times = list(times)
    logs = np.log([time.value for time in times])
    low, high = _ends(logs.mean(), *_paired(logs), confidence)
    low, high = _open(low, high, above=_has(times, "right"), below=_has(times, "left"))
    return MeanTime(
        estimate=float(np.exp(logs.mean())),
        low=low,
        high=high,
        n=len(times),
        right=sum(time.censored == "right" for time in times),
        left=sum(time.censored == "left" for time in times),
    )


def closed_ends(interval: Speedup | MeanTime) -> tuple[float, float] | None:
    """Return the ends of an interval; None if an end is open or there is no interval."""
    low, high = interval.low, interval.high
    return (low, high) if low and high is not None and math.isfinite(high) else None


def cut(time: Time, horizon: float) -> Time:
    """Censor a time at the horizon.

    A run that failed earlier is right-censored at the horizon. A run already past the target when first
    evaluated, after the horizon, is left-censored there.
    """
    if time.censored == "right" and math.isfinite(horizon):
        return Time(horizon, "right")
    return time if time.value <= horizon else Time(horizon, time.censored or "right")


def _paired(d: np.ndarray) -> tuple[float | None, float]:
    """Return the standard error of the mean, None for fewer than two values, and its degrees of freedom."""
    n = len(d)
    return (None if n < 2 else _spread(d) / math.sqrt(n)), n - 1


def _welch(a: np.ndarray, b: np.ndarray) -> tuple[float | None, float]:
    """Return the standard error of a difference of independent means, and Welch-Satterthwaite degrees of
    freedom."""
    if min(len(a), len(b)) < 2:
        return None, 0.0
    va, vb = _spread(a) ** 2 / len(a), _spread(b) ** 2 / len(b)
    if va + vb == 0:
        return 0.0, len(a) + len(b) - 2
    return math.sqrt(va + vb), (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))


def _spread(values: np.ndarray) -> float:
    """Return the standard deviation; 0 if it is no more than a rounding error."""
    sd = float(values.std(ddof=1))
    return sd if sd > 1e-12 else 0.0


def _ends(
    mean: float, error: float | None, degrees: float, confidence: float
) -> tuple[float | None, float | None]:
    """Return Student's t interval of exp(mean)."""
    if error is None:
        return None, None
    low, high = t_interval(mean, error, degrees, confidence)
    return float(np.exp(low)), float(np.exp(high))


def _open(
    low: float | None, high: float | None, *, above: bool, below: bool
) -> tuple[float | None, float | None]:
    """Return the interval with the ends opened that censored times do not bound."""
    if low is None or high is None:
        return low, high
    return (0.0 if below else low), (math.inf if above else high)


def _has(times: list[Time], side: str) -> bool:
    return any(time.censored == side for time in times)


def _known(pairs: Iterable[tuple[Time, Time]]) -> bool:
    """Return whether any pair bounds the ratio: a pair with the same kind of bound on both sides does not."""
    return any(b.censored is None or b.censored != c.censored for b, c in pairs)


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 3:
        return None
    x, y = a - a.mean(), b - b.mean()
    scale = math.sqrt((x @ x) * (y @ y))
    # Equal times differ by rounding errors, which do not correlate.
    return float(x @ y) / scale if scale > 1e-20 else None
