"""Scaling of quality and speed with the encoder or with the size of the backbone.

A study that varies `method.encoder.name` has one point for each combination of objective, encoder and other
fields. The x axes are the encoder's parameters (from the records) and its probe scores (`encoders.json`,
written by `flowrace probe STUDY`). The y axes are the metric's last value, the steps to target, and the
speed-up over the baseline. Encoders with random weights and arms without an encoder are controls. A study
that varies the backbone has one point for each size and objective, each size in its own cell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness.errors import UserError
from reports.race.arms import RaceArm
from reports.race.race import Race
from reports.race.run import RaceRun
from reports.race.study_folder import read_probe_tables
from reports.race.workloads import Workload
from reports.stats.correlation import Rank, Slope, slope, spearman
from reports.stats.speedup import MeanTime, Speedup, Time, mean_time

ENCODERS = "encoders.json"
AXIS = "steps"
KNOWN = ("accuracy", "cknna", "local_distant")
"""The scores of `encoders.json` that are used as x, in the order of the page."""
Kind = Literal["trained", "random", "none"]


@dataclass(frozen=True)
class ScalingPoint:
    """One arm: its x values by name, and its results."""

    arm: str
    group: str
    """Points are compared within a group: the arm's label without its encoder."""
    kind: Kind
    name: str
    """The name of the encoder (empty without one), or the size of the backbone."""
    x: Mapping[str, float]
    runs: tuple[RaceRun, ...]
    """The runs that count."""
    final: MeanTime | None
    """Geometric mean of the metric's last fitted value over finished seeds."""
    time: MeanTime | None
    """Steps to target."""
    gain: Speedup | None
    """Speed-up over the baseline, in steps."""

    def y(self, name: str) -> float | None:
        """Return the value of one of `YS`."""
        value = {"final": self.final, "time": self.time, "gain": self.gain}[name]
        return None if value is None else value.estimate


YS = ("final", "time", "gain")


@dataclass(frozen=True)
class Trend:
    """The dependence of one y on one x within a group."""

    group: str
    x: str
    y: str
    rank: Rank
    """Rank correlation without random encoders."""
    with_random: Rank | None
    """Rank correlation with random encoders; None without any."""
    slope: Slope | None
    """Slope of log y on log parameters, or on another x as it is, over runs without random encoders. None
    for `gain`."""
    bounded: int
    """The number of points with a run that never reached the target, whose time is a bound."""


@dataclass(frozen=True)
class Scaling:
    """The points of a study and their trends."""

    points: tuple[ScalingPoint, ...]
    xs: tuple[str, ...]
    trends: tuple[Trend, ...]
    protocol: Mapping[str, Any] | None = None
    """The protocol of `encoders.json`; None if it was not read."""


def encoder_scaling(race: Race) -> Scaling | None:
    """Return the scaling with the encoder; None for fewer than two encoders.

    Raises `UserError` for an invalid `encoders.json`.
    """
    arms = [arm for arm in race.arms if _counted(race.of(arm.label))]
    if len({arm.encoder for arm in arms if arm.encoder}) < 2:
        return None
    table = read_encoders({run.record.path.parent for run in race.runs})
    known = table["encoders"] if table else {}
    points = [_encoder_point(race, arm, known) for arm in arms]
    return _scaling(points, ("params", *KNOWN), table and table["protocol"])


def model_scaling(workloads: Sequence[Workload]) -> Scaling | None:
    """Return the scaling with the size of the backbone.

    None for fewer than two sizes, or if the records have no parameter counts.
    """
    points = [
        _model_point(cell, objective, runs, params)
        for cell in workloads
        for objective, runs in cell.runs.items()
        if _counted(runs) and (params := params_of(runs)) is not None
    ]
    if len({point.x["params"] for point in points}) < 2:
        return None
    return _scaling(points, ("params",))


def read_encoders(folders: Iterable[Path]) -> dict[str, Any] | None:
    """Return the first `encoders.json` of these folders, or None. Raises `UserError` for an invalid one."""
    for file, table in read_probe_tables(folders, ENCODERS):
        if isinstance(table, dict) and all(
            isinstance(table.get(key), dict) for key in ("protocol", "encoders")
        ):
            return table
        raise UserError(
            f"{file} is not a valid table of encoders; move it away and run: flowrace probe {file.parent}"
        )
    return None


def params_of(runs: Sequence[RaceRun]) -> int | None:
    """Return the recorded number of parameters of the backbone; None if it is not recorded."""
    starts = [start for run in runs for start in run.record.environment if "params" in start]
    return int(starts[-1]["params"]) if starts else None


def kind_of(encoder: str | None) -> Kind:
    """Return the kind of an encoder by its family: `random:...` is a control, cached or not."""
    if not encoder:
        return "none"
    return "random" if encoder.removeprefix("cached:").startswith("random:") else "trained"


def _encoder_point(race: Race, arm: RaceArm, known: Mapping[str, Any]) -> ScalingPoint:
    runs = _counted(race.of(arm.label))
    x = _of_record(runs, arm.encoder) | _of_table(known.get(arm.encoder or "", {}))
    group = _without(arm.label, arm.encoder)
    time, gain = race.times.get((AXIS, arm.label)), race.speedups.get((AXIS, arm.label))
    return ScalingPoint(
        arm.label, group, kind_of(arm.encoder), arm.encoder or "", x, tuple(runs), _final(runs), time, gain
    )


def _model_point(cell: Workload, objective: str, runs: Sequence[RaceRun], params: int) -> ScalingPoint:
    counted = _counted(runs)
    times = cell.times(objective, AXIS) if AXIS in cell.horizons else {}
    return ScalingPoint(
        cell.arms[objective],
        objective,
        "trained",
        str(cell.fields.get("backbone.size", cell.label)),
        {"params": float(params)},
        tuple(counted),
        _final(counted),
        mean_time(times.values()) if times else None,
        cell.speedups.get((AXIS, objective)),
    )


def _scaling(points: Sequence[ScalingPoint], xs: Sequence[str], protocol: Mapping | None = None) -> Scaling:
    shown = tuple(x for x in xs if any(x in point.x for point in points))
    groups = dict.fromkeys(point.group for point in points if point.x)
    trends = [
        trend
        for y in YS
        for x in shown
        for group in groups
        if (trend := _trend([p for p in points if p.group == group and x in p.x], group, x, y))
    ]
    return Scaling(tuple(points), shown, tuple(trends), protocol)


def _trend(points: Sequence[ScalingPoint], group: str, x: str, y: str) -> Trend | None:
    """Return the trend; None if no point has this y."""
    points = [point for point in points if point.y(y) is not None]
    if not points:
        return None
    trained = [point for point in points if point.kind != "random"]
    bounded = sum(point.time is not None and point.time.right > 0 for point in trained) if y != "final" else 0
    any_random = len(trained) < len(points)
    return Trend(
        group,
        x,
        y,
        _rank(trained, x, y),
        _rank(points, x, y) if any_random else None,
        _slope(trained, x, y),
        bounded,
    )


def _rank(points: Sequence[ScalingPoint], x: str, y: str) -> Rank:
    known = [(point.x[x], value) for point in points if (value := point.y(y)) is not None]
    return spearman([at for at, _ in known], [value for _, value in known])


def _slope(points: Sequence[ScalingPoint], x: str, y: str) -> Slope | None:
    """Return the slope over runs; None for a speed-up, which is defined on pairs of runs."""
    if y == "gain":
        return None
    rows = [
        (point.x[x], run.seed, value)
        for point in points
        for run in point.runs
        if (value := _log(run, y)) is not None
    ]
    if not rows:
        return None
    at, seeds, values = zip(*rows, strict=True)
    return slope(np.log(at).tolist() if x == "params" else at, values, seeds)


def _log(run: RaceRun, y: str) -> float | None:
    if y == "final":
        return math.log(run.curve.fitted[-1]) if run.complete else None
    return math.log(run.crossing.step) if run.crosses else None


def _final(runs: Sequence[RaceRun]) -> MeanTime | None:
    """Return the geometric mean of last values over finished runs, defined as for times."""
    values = [Time(float(run.curve.fitted[-1])) for run in runs if run.complete]
    return mean_time(values) if values else None


def _counted(runs: Sequence[RaceRun]) -> list[RaceRun]:
    return [run for run in runs if run.counts]


def _of_record(runs: Sequence[RaceRun], encoder: str | None) -> dict[str, float]:
    for start in (start for run in runs for start in run.record.environment):
        for entry in start.get("encoders", ()):
            if entry.get("name") == encoder and entry.get("params"):
                return {"params": float(entry["params"])}
    return {}


def _of_table(known: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(known[name]["mean"]) for name in KNOWN if known.get(name)}


def _without(label: str, encoder: str | None) -> str:
    """Return a label without its encoder: `repa (encoder = local:tiny, layer = 2)` -> `repa (layer = 2)`.

    >>> _without("repa+tread (repa.encoder = local:tiny, tread.rate = 0.5)", "local:tiny")
    'repa+tread (tread.rate = 0.5)'
    """
    text = rf"(?:[\w-]+\.)?encoder = {re.escape(encoder or '')}"
    return re.sub(rf" \({text}\)|\b{text}, |, {text}(?=[,)])", "", label)
