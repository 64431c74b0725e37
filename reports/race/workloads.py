"""Workloads, the cells of a study (model sizes, data sets, step counts): the speed-up in each, and the
pooled speed-up.

reports/race/cells.py defines cells and objectives. Runs are compared only within their cell, at the cell's
own target and budgets. The effects S_c of K cells are pooled as their geometric mean, with equal weights:

    log S = mean_c log S_c

If every cell has the same seeds in both arms, the seed is the unit, as for one cell. Runs with one seed share
initial weights, data order, noise and times in all cells, so that the errors of cells are correlated:

    D_s = mean_c d_cs,    interval exp(mean D +- t_{n-1} sd(D) / sqrt n)     over the n seeds

Otherwise the cells are treated as independent, with degrees of freedom by Welch and Satterthwaite:

    var = sum_c e_c^2 / K^2        e_c is the standard error of log S_c

Either interval is of the mean over *these* cells. The definitions of the project leave this interval open.
The usual choice (rliable) is a bootstrap over the seeds of each cell, whose intervals are too narrow for the
3 to 10 seeds of a cell (tests/reports/test_workloads.py measures all three). If one cell's interval is open
at an end, so is the mean's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from reports.race.arms import RaceArm
from reports.race.cells import cell_label, split_arms
from reports.race.comparability import comparable_axes, values_differ
from reports.race.race import Race, compare_runs
from reports.race.run import RaceRun, cross
from reports.race.target import reachable_by_all
from reports.stats.speedup import Speedup, Time, cut
from reports.stats.t_interval import CONFIDENCE, t_interval


@dataclass(frozen=True)
class Workload:
    """Arms that differ only in their objective. Mappings are by objective, or by axis and objective."""

    label: str
    """The fields that distinguish it from other cells; empty if there is one."""
    fields: Mapping[str, Any]
    target: float | None
    """The study's target; without one, the lowest value that every finished run of the cell reaches."""
    axes: tuple[str, ...]
    runs: Mapping[str, tuple[RaceRun, ...]]
    arms: Mapping[str, str]
    """Labels of the race's arms."""
    speedups: Mapping[tuple[str, str], Speedup]
    """Over the baseline's objective in this cell."""
    horizons: Mapping[str, float]
    why: str = ""
    """Why nothing is compared in this cell; empty if its arms are compared."""

    def times(self, objective: str, axis: str) -> dict[int, Time]:
        """Return times to target by seed, cut at the cell's smallest budget."""
        times = {run.seed: run.time(axis) for run in self.runs.get(objective, ()) if run.crosses}
        return {seed: cut(time, self.horizons[axis]) for seed, time in times.items()}


@dataclass(frozen=True)
class PooledSpeedup:
    """The effect of one objective over all cells that have an interval."""

    gain: Speedup
    """Geometric mean; `n` counts seeds if `by_seed`, else the seed pairs of all its cells."""
    cells: tuple[str, ...]
    left_out: tuple[str, ...]
    """Cells without an interval."""
    by_seed: bool = False
    """True if the interval is over seeds, each averaged over the cells."""


def workloads_of(race: Race) -> list[Workload]:
    """Return the cells of a race in order of its arms; a single one if arms differ only in objective."""
    objectives, workloads = split_arms(race.arms, race.labels)
    groups: dict[str, list[RaceArm]] = {}
    for arm in race.arms:
        groups.setdefault(cell_label(workloads[arm.label]), []).append(arm)
    base = objectives[race.baseline]
    return [
        _cell(race, label, arms, objectives, workloads[arms[0].label], base) for label, arms in groups.items()
    ]


def objectives_of(race: Race) -> list[str]:
    """Return the labels of all objectives, the baseline's first."""
    return list(dict.fromkeys(split_arms(race.arms, race.labels)[0].values()))


def pool_cells(
    workloads: Sequence[Workload], axis: str, objective: str, confidence: float = CONFIDENCE
) -> PooledSpeedup | None:
    """Return the pooled effect of an objective, by seed if all cells have the same seeds in both arms.

    None if fewer than two cells have an interval.
    """
    pooled = pool_speedups(
        {cell.label: cell.speedups.get((axis, objective)) for cell in workloads}, confidence
    )
    if pooled is None:
        return None
    ratios = [_log_ratios(cell, axis, objective) for cell in workloads if cell.label in pooled.cells]
    seeds = [tuple(by_seed) for by_seed in ratios]
    if not pooled.gain.paired or len(set(seeds)) > 1 or len(seeds[0]) < 2:
        return pooled
    means = np.mean([[by_seed[seed] for seed in seeds[0]] for by_seed in ratios], axis=0)
    mean, n = float(means.mean()), len(means)
    sd = float(means.std(ddof=1))
    # A spread of rounding errors is none.
    error = (sd if sd > 1e-12 else 0.0) / math.sqrt(n)
    low, high = (math.exp(end) for end in t_interval(mean, error, n - 1, confidence))
    gain = replace(
        pooled.gain,
        estimate=math.exp(mean),
        low=0.0 if pooled.gain.low == 0 else low,
        high=math.inf if pooled.gain.high == math.inf else high,
        n=n,
        error=error,
        degrees=n - 1,
    )
    return replace(pooled, gain=gain, by_seed=True)


def pool_speedups(
    gains: Mapping[str, Speedup | None], confidence: float = CONFIDENCE
) -> PooledSpeedup | None:
    """Return the pooled effect of speed-ups by cell; None if fewer than two cells have an interval."""
    known = {label: g for label, g in gains.items() if g and g.estimate is not None and g.error is not None}
    if len(known) < 2:
        return None
    effects = np.log([g.factor for g in known.values()])
    squares = np.square([g.error for g in known.values() if g.error is not None])
    mean, error = float(effects.mean()), math.sqrt(squares.sum()) / len(known)
    degrees = _degrees(squares, [g.degrees for g in known.values()])
    low, high = t_interval(mean, error, degrees, confidence)
    return PooledSpeedup(
        Speedup(
            estimate=math.exp(mean),
            low=0.0 if any(g.low == 0 for g in known.values()) else math.exp(low),
            high=math.inf if any(g.high == math.inf for g in known.values()) else math.exp(high),
            n=sum(g.n for g in known.values()),
            paired=all(g.paired for g in known.values()),
            censored_baseline=sum(g.censored_baseline for g in known.values()),
            censored_candidate=sum(g.censored_candidate for g in known.values()),
            correlation=None,
            error=error,
            degrees=degrees,
        ),
        cells=tuple(known),
        left_out=tuple(label for label in gains if label not in known),
    )


def count_sooner(baseline: Mapping[int, Time], candidate: Mapping[int, Time]) -> tuple[int, int]:
    """Return (seed pairs in which the candidate arrived first, pairs whose order is known).

    Ties, and pairs in which neither arrived, have no order.
    """
    first = ordered = 0
    for seed in baseline.keys() & candidate.keys():
        a, b = _rank(baseline[seed]), _rank(candidate[seed])
        ordered += a != b
        first += b < a
    return first, ordered


def _cell(
    race: Race,
    label: str,
    arms: Sequence[RaceArm],
    objectives: Mapping[str, str],
    fields: Mapping[str, Any],
    base: str,
) -> Workload:
    labels = {objectives[arm.label]: arm.label for arm in arms}
    order = sorted(labels, key=lambda objective: objective != base)
    runs = {objective: race.of(labels[objective]) for objective in order}
    every = [run for of_objective in runs.values() for run in of_objective]
    target = race.target_of(arms[0].label) if race.target_given else reachable_by_all(every)
    crossed = {
        objective: tuple(cross(run, target) for run in of_objective)
        for objective, of_objective in runs.items()
    }
    axes, _ = comparable_axes([run for of_objective in crossed.values() for run in of_objective])
    incomparable = values_differ(every)
    compared = compare_runs(
        [run for of_objective in crossed.values() for run in of_objective],
        [labels[objective] for objective in order],
        axes,
        not incomparable,
    )
    base_counts = any(run.counts for run in crossed.get(base, ()))
    why = incomparable if base_counts else f"no finished run of {base}"
    names = {arm: objective for objective, arm in labels.items()}
    gains = {} if why else {(axis, names[arm]): gain for (axis, arm), gain in compared["speedups"].items()}
    return Workload(label, fields, target, axes, crossed, labels, gains, compared["horizons"], why)


def _log_ratios(cell: Workload, axis: str, objective: str) -> dict[int, float]:
    """Return log(baseline / candidate) of the times by seed; empty unless both arms have the same seeds."""
    base, own = cell.times(next(iter(cell.runs)), axis), cell.times(objective, axis)
    if base.keys() != own.keys():
        return {}
    return {seed: math.log(base[seed].value / own[seed].value) for seed in sorted(base)}


def _degrees(squares: np.ndarray, degrees: Sequence[float]) -> float:
    """Return the degrees of freedom of a sum of independent squared errors (Welch and Satterthwaite)."""
    total = float(squares.sum())
    return float(sum(degrees)) if total == 0 else total**2 / float(np.sum(squares**2 / np.asarray(degrees)))


def _rank(time: Time) -> float:
    return math.inf if time.censored == "right" else time.value
