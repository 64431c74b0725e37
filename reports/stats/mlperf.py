"""MLPerf's aggregate of times to target: the mean without the fastest and the slowest run.

    value = (sum T - min T - max T) / (n - 2)        n >= 3

A run that did not reach the target is the slowest one, and a second one makes the result invalid. So is a run
that failed before its first evaluation. While a planned run has not ended, the result is invalid. The rule
defines no interval, so it is shown next to the speed-up of this package and decides nothing (MLPerf Training
Benchmark, arXiv 1910.01500).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from reports.stats.speedup import Time

FEWEST = 3
"""The smallest number of runs that leaves one."""
RULE = "fastest and slowest run dropped, mean of the rest, no interval"


@dataclass(frozen=True)
class Aggregate:
    """MLPerf's aggregate of one arm."""

    value: float | None
    """None if it is invalid."""
    n: int
    """Number of runs, the two dropped ones included."""
    why: str = ""
    """Why it is invalid."""


def aggregate(times: Iterable[Time], *, lost: int = 0, missing: int = 0) -> Aggregate:
    """Return MLPerf's aggregate of an arm's times.

    `lost` is the number of further runs that failed before their first evaluation, `missing` that of further
    runs without an end.
    """
    times = [*times, *(Time(math.inf, "right") for _ in range(lost))]
    n = len(times)
    if missing:
        return Aggregate(
            None, n, f"{missing} of {n + missing} runs {'is' if missing == 1 else 'are'} missing"
        )
    if n < FEWEST:
        return Aggregate(None, n, f"{n} {'run' if n == 1 else 'runs'}; it needs {FEWEST}")
    never, early = (sum(time.censored == side for time in times) for side in ("right", "left"))
    if never > 1:
        return Aggregate(None, n, f"{never} of {n} runs did not reach the target; at most 1 may")
    # The time of a run that was below the target at its first evaluation is known only to be shorter.
    if early > 1:
        return Aggregate(None, n, f"{early} of {n} runs were below the target at their first evaluation")
    kept = sorted(times, key=_rank)[1:-1]
    return Aggregate(math.fsum(time.value for time in kept) / len(kept), n)


def _rank(time: Time) -> tuple[int, float]:
    return {"left": 0, None: 1, "right": 2}[time.censored], time.value
