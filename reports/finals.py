"""What every metric says at the end, of every arm: a mean over seeds with its interval, beside what real samples score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from reports.judge import floors
from reports.race import Race, Run


@dataclass(frozen=True)
class Final:
    """A metric at the last step of an arm's finished runs."""

    arm: str
    metric: str
    step: int
    n: int
    """Seeds."""
    mean: float
    sd: float | None
    """Of the seeds, n - 1 in its denominator; None for one seed, and so are the ends."""
    low: float | None
    high: float | None
    """95 %, t with n - 1 degrees of freedom."""


def finals(race: Race) -> list[Final]:
    """By metric, then arm, in the order of records; runs that ended at another step than the arm's furthest are left out."""
    found = [final for arm in race.arms for final in _of_arm(race.of(arm.label), arm.label)]
    order = list(dict.fromkeys(final.metric for final in found))
    return sorted(found, key=lambda final: order.index(final.metric))


def real(race: Race) -> dict[str, dict[str, float]]:
    """What real samples score by metric and kind: held out, halves of the training set, spoilt."""
    found: dict[str, dict[str, float]] = {}
    for run in race.runs:
        for metric, kinds in floors(run).items():
            found.setdefault(metric, {kind: value["mean"] for kind, value in kinds.items()})
    return found


def _of_arm(runs: Sequence[Run], label: str) -> Iterator[Final]:
    ends: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        if run.record.status == "done":
            last = run.record.of("eval")[-1]
            for metric, value in last["metrics"].items():
                ends.setdefault(metric, {}).setdefault(last["step"], []).append(value["mean"])
    for metric, by_step in ends.items():
        step = max(by_step)
        yield _final(label, metric, step, by_step[step])


def _final(arm: str, metric: str, step: int, values: Sequence[float]) -> Final:
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Final(arm, metric, step, n, mean, None, None, None)
    sd = float(np.std(values, ddof=1))
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return Final(arm, metric, step, n, mean, sd, mean - half, mean + half)
