"""The data of the page's interactive charts: curves on every axis, and the speed-up at every target."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reports.race.by_target import SpeedupByTarget
from reports.race.race import Race
from reports.race.run import RaceRun
from reports.stats.speedup import Speedup, closed_ends
from reports.stats.t_interval import t_interval

POINTS = 5_000
"""Points of all measured curves together: finer than a screen, and the page stays within a few megabytes."""
MEANS = 1_000
"""Points of all means of one chart, at most a fifth for each."""
LEAST = 16
"""Points that a curve keeps, however many curves there are."""


def thin(x: np.ndarray, y: np.ndarray, most: int) -> np.ndarray:
    """Return indices of at most `most` points that look the same on a screen.

    These are both ends, and the lowest and the highest point of each of several equal stretches.
    """
    if len(x) <= max(most, 4):
        return np.arange(len(x))
    rows = np.array_split(np.arange(1, len(x) - 1), (most - 2) // 2)
    kept = [row[i] for row in rows for i in (y[row].argmin(), y[row].argmax())]
    return np.unique([0, *kept, len(x) - 1])


def allowance(race: Race, points: int = POINTS) -> int:
    """Return the number of points for each measured curve, so that all together have at most `points`."""
    return max(points // max(sum(run.evaluated for run in race.runs), 1), LEAST)


def mean_band(runs: Sequence[RaceRun]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the geometric mean of fitted curves with its pointwise 95 % t interval.

    The result is (steps, mean, low, high), over the steps that the curves of all runs cover. With one run
    the interval is the mean itself.
    """
    low, high = max(run.curve.steps[0] for run in runs), min(run.curve.steps[-1] for run in runs)
    steps = np.unique(np.concatenate([run.curve.steps for run in runs]))
    steps = steps[(steps >= low) & (steps <= high)]
    fits = [np.interp(np.log(steps), np.log(run.curve.steps), np.log(run.curve.fitted)) for run in runs]
    mean, n = np.mean(fits, axis=0), len(runs)
    if n == 1:
        return steps, np.exp(mean), np.exp(mean), np.exp(mean)
    low_log, high_log = t_interval(mean, np.std(fits, axis=0, ddof=1), n - 1, n=n)
    return steps, np.exp(mean), np.exp(low_log), np.exp(high_log)


def payload(race: Race, by_target: SpeedupByTarget, names: Mapping[str, str]) -> dict[str, Any]:
    """Return all charts by kind and axis. A series has its arm's number, a kind (seed, mean, low or high), x
    and y."""
    drawn = any(run.evaluated for run in race.runs)
    return {
        "convergence": {axis: _convergence(race, axis, names[axis]) for axis in race.axes if drawn},
        "targets": {
            axis: _targets(race, names[axis], by_target.targets, gains)
            for axis, gains in by_target.gains.items()
        },
    }


def script_json(content: Any) -> str:
    """Return JSON that is safe inside a `<script>` element; equal content gives equal bytes."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, sort_keys=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _convergence(race: Race, axis: str, name: str) -> dict[str, Any]:
    series, dots, most = [], [], allowance(race)
    for index, arm in enumerate(race.arms):
        runs = [run for run in race.of(arm.label) if run.evaluated]
        for run in runs:
            kept = thin(run.curve.steps, run.curve.measured, most)
            x = run.costs.at_each(axis, run.curve.steps[kept])
            series.append(_series(index, "seed", x, run.curve.measured[kept], f"seed {run.seed}"))
        counted = [run for run in runs if run.done]
        if counted:
            series += _mean(index, counted, axis, max(MEANS // max(len(race.arms), 5), 40))
        times = [run.time(axis) for run in runs if run.crosses]
        dots += [] if race.target is None else [[index, _short(time.value), time.censored] for time in times]
    shown = {"line": race.target, "mark": None}
    return {"x": name, "y": race.metric, **shown, "series": series, "dots": dots}


def _mean(index: int, runs: Sequence[RaceRun], axis: str, most: int) -> list[dict[str, Any]]:
    steps, mean, low, high = mean_band(runs)
    kept = thin(steps, mean, most)
    x = np.exp(np.mean([np.log(run.costs.at_each(axis, steps[kept])) for run in runs], axis=0))
    band = (
        [_series(index, kind, x, y[kept]) for kind, y in (("high", high), ("low", low))]
        if len(runs) > 1
        else []
    )
    return [*band, _series(index, "mean", x, mean[kept])]


def _targets(
    race: Race, name: str, at: Sequence[float], gains: Mapping[str, list[Speedup]]
) -> dict[str, Any]:
    series = []
    indices = {arm.label: index for index, arm in enumerate(race.arms)}
    for label, of_arm in gains.items():
        index = indices[label]
        known = [(x, g) for x, g in zip(at[::-1], of_arm[::-1], strict=True) if g.estimate is not None]
        closed = [(x, ends) for x, g in known if (ends := closed_ends(g))]
        for kind, end in (("high", 1), ("low", 0)):
            series.append(_series(index, kind, [x for x, _ in closed], [ends[end] for _, ends in closed]))
        series.append(_series(index, "mean", [x for x, _ in known], [g.estimate for _, g in known]))
    series = [line for line in series if line["x"]]
    shown = {"line": 1.0, "mark": race.target}
    return {"x": race.metric, "y": f"speed-up in {name}", **shown, "series": series, "dots": []}


def _series(arm: int, kind: str, x: Any, y: Any, name: str = "") -> dict[str, Any]:
    return {"arm": arm, "kind": kind, "x": [_short(v) for v in x], "y": [_short(v) for v in y], "name": name}


def _short(value: float) -> float:
    """Round to five significant digits, which is finer than a pixel."""
    return float(f"{value:.5g}")
