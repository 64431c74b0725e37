"""The complete race as numbers: runs, arms, cells, targets, times, speed-ups, and notes on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from harness.errors import UserError, unknown
from harness.records.evaluations import falling, recorded_name
from harness.records.integrity import named_misfits
from harness.records.measured import metric_names
from harness.records.record import Record, find_records
from harness.records.study_folder import PlanEntry, PlanExclusion
from harness.records.targets import TargetRule, falling_rules
from reports.race.arms import RaceArm, arms_of
from reports.race.cells import RaceCell, baseline_first, cells_of, split_arms
from reports.race.comparability import comparable_axes, values_differ
from reports.race.conditions import select, text_of
from reports.race.run import RaceRun, read_costs, run_of
from reports.race.study_folder import read_plan, read_study, split_by_plan
from reports.race.target import cross_all, requested_rules, targets_of
from reports.stats.speedup import MeanTime, Speedup, Time, cut, mean_time, speedup


@dataclass(frozen=True)
class Race:
    """The results of a race, before any rendering. Mappings have the keys (axis, arm label), or the axis."""

    name: str
    metric: str
    target: float | None
    """None if no run is finished yet, or if cells have different targets."""
    target_given: bool
    """False for a target that was chosen after the fact."""
    baseline: str
    """The label of the baseline's arm; with several cells, of its arm in the first cell."""
    axes: tuple[str, ...]
    arms: tuple[RaceArm, ...]
    """The baseline first."""
    runs: tuple[RaceRun, ...]
    times: Mapping[tuple[str, str], MeanTime]
    speedups: Mapping[tuple[str, str], Speedup]
    """Over the baseline of the arm's own cell."""
    leaders: Mapping[str, str]
    """The arm with the smallest mean time on an axis. It has no entry if no run reached the target, and none
    in a race with several cells."""
    leads: Mapping[tuple[str, str], Speedup]
    """Speed-ups of the leader over every other arm."""
    horizons: Mapping[str, float]
    """The smallest budget of any finished run. Times are cut at the smallest budget of the same cell.

    It is infinite on an axis on which budgets are unknown and every run reached the target."""
    missing: tuple[PlanEntry, ...]
    unplanned: tuple[Record, ...]
    notes: tuple[str, ...]
    plan: tuple[PlanEntry, ...] = ()
    excluded: tuple[PlanExclusion, ...] = ()
    cells: tuple[RaceCell, ...] = ()
    cell_horizons: Mapping[tuple[str, str], float] | None = None
    """By axis and arm label."""
    targets: Mapping[str, float | None] | None = None
    """By arm label."""
    rules: tuple[TargetRule, ...] = ()
    """All requested targets. The race is at the first of them."""
    labels: Mapping[str, str] | None = None
    """Shown names by method or arm label."""
    across: str | None = None
    """The requested summary of several cells in the headline; None for the default."""
    axis_notes: tuple[str, ...] = ()
    """Notes on axes that are left out at this target."""
    misfits: tuple[str, ...] = ()
    """The records that do not fit together, a sentence for each run."""

    def of(self, label: str) -> list[RaceRun]:
        """Return the runs of an arm, by seed."""
        return [run for run in self.runs if run.arm == label]

    @property
    def baselines(self) -> set[str]:
        """The arms that others are compared with, one for each cell that has one."""
        return {cell.baseline for cell in self.cells if cell.baseline is not None}

    @property
    def candidates(self) -> list[str]:
        return [arm.label for arm in self.arms if arm.label not in self.baselines]

    @property
    def reference(self) -> str:
        """The baseline in words: its label, or its objective `in the same cell`."""
        if len(self.cells) < 2:
            return self.baseline
        return f"{self.baseline_objective} in the same cell"

    @property
    def baseline_objective(self) -> str:
        """The baseline without the fields of its cell."""
        if len(self.cells) < 2:
            return self.baseline
        return split_arms(self.arms, self.labels)[0][self.baseline]

    @property
    def rule(self) -> TargetRule | None:
        """The rule of the target; None if it was chosen after the fact."""
        return self.rules[0] if self.rules else None

    @property
    def protocol(self) -> str:
        """The conditions of the metric's values in words; empty if the records do not contain them.

        Values that differ between runs are joined by `or`.
        """
        return text_of(fields for run in self.runs if run.evaluated for fields in run.conditions)

    def cell_of(self, label: str) -> RaceCell:
        """Return the cell of an arm."""
        return next(cell for cell in self.cells if label in cell.arms)

    def target_of(self, label: str) -> float | None:
        """Return the target of an arm, which is that of its cell."""
        return (self.targets or {}).get(label)

    def horizon(self, axis: str, label: str) -> float:
        """Return the smallest budget of any finished run in an arm's cell."""
        return (self.cell_horizons or {})[axis, label]


class RaceArguments(TypedDict, total=False):
    """The arguments of `read_race` that functions pass on; those that are not given come from the study."""

    metric: str | None
    target: float | str | None
    baseline: str | None
    labels: Mapping[str, str] | None
    across: str | None
    protocol: str | None


def read_race(
    directories: Sequence[Path],
    *,
    metric: str | None = None,
    target: float | str | None = None,
    baseline: str | None = None,
    labels: Mapping[str, str] | None = None,
    across: str | None = None,
    protocol: str | None = None,
    logged: Sequence[Record] | None = None,
) -> Race:
    """Read the runs in these folders and compare them; arguments default to the values in `study.toml`.

    `logged` are the runs of logs, which replace those of the folders.

    `target` is a number or a rule, for example `baseline@400`, `90%` or `8,10`; of several targets the race
    is at the first (`race_at` gives the others). The study's target holds only for the study's metric.
    Without a target, the lowest value that every run of a cell reaches is used and reported as chosen after
    the fact. `protocol` chooses the conditions of the evaluations, for example `guidance=1.5`. A metric that
    rises during training has no times to target, so nothing is compared; `1-obeys:colour` is the shortfall of
    a share, which falls. Raises `UserError` for folders without runs, unknown names, several arms without a
    baseline, and broken records.
    """
    study, plan = read_study(directories), read_plan(directories)
    found_records = find_records(*directories) if logged is None else list(logged)
    records, unplanned = split_by_plan(found_records, directories)
    if not records:
        raise UserError(f"no runs in {', '.join(map(str, directories))}: a run is a folder with a spec.toml")
    if protocol is not None:
        records = select(records, protocol)
    costs = read_costs(records) if logged is None else {}
    order = {run.id: place for place, run in enumerate(plan.runs)}
    names = dict(study.labels) | dict(labels or {})
    found = arms_of(records, names)
    _check_labels(found, labels or {})
    arms, notes = baseline_first(found, baseline, study.baseline, order)
    asked_metric, metric = metric, _metric(records, metric or study.metric)
    asked = requested_rules(target)
    if asked_metric != metric:
        # A number is one of success, unless its shortfall was asked for.
        asked = falling_rules(recorded_name(metric), asked)
    runs = [
        run_of(arm.label, seed, record, metric, costs.get(record.path))
        for arm in arms
        for seed, record in arm.runs.items()
    ]
    empty = Race(
        name=study.name or directories[0].resolve().name,
        metric=metric,
        target=None,
        target_given=False,
        baseline=arms[0].label,
        axes=(),
        arms=tuple(arms),
        runs=tuple(runs),
        times={},
        speedups={},
        leaders={},
        leads={},
        horizons={},
        missing=tuple(run for run in plan.runs if run.id not in {record.id for record in records}),
        unplanned=tuple(unplanned),
        notes=tuple(notes),
        plan=plan.runs,
        excluded=plan.exclusions,
        cells=cells_of(arms, names),
        rules=asked or study.rules_of(metric),
        labels=names,
        across=across or study.across,
        misfits=tuple(named_misfits(records)),
    )
    return race_at(empty, empty.rule)


def race_at(race: Race, rule: TargetRule | None) -> Race:
    """Return the race at another target: the same runs with other crossings, times and speed-ups."""
    targets = targets_of(race.arms, race.runs, race.cells, rule)
    runs = cross_all(race.runs, targets)
    axes, axis_notes = comparable_axes(runs)
    values = set(targets.values())
    results: dict = {"times": {}, "speedups": {}, "leaders": {}, "leads": {}, "horizons": {}}
    horizons: dict[tuple[str, str], float] = {}
    for cell in race.cells:
        own = [run for run in runs if run.arm in cell.arms]
        comparable = cell.baseline is not None and not values_differ(own)
        compared = compare_runs(own, cell.arms, axes, comparable)
        # A leader of several cells would be compared across them.
        for name in ("times", "speedups", *(("leaders", "leads") if len(race.cells) == 1 else ())):
            results[name] |= compared[name]
        for axis, horizon in compared["horizons"].items():
            results["horizons"][axis] = min(horizon, results["horizons"].get(axis, horizon))
            horizons |= {(axis, label): horizon for label in cell.arms}
    return replace(
        race,
        target=next(iter(values)) if len(values) == 1 else None,
        target_given=rule is not None,
        targets=targets,
        rules=(() if rule is None else (rule, *(other for other in race.rules if other != rule))),
        runs=tuple(runs),
        axes=axes,
        axis_notes=tuple(axis_notes),
        cell_horizons=horizons,
        **results,
    )


def compare_runs(
    runs: Sequence[RaceRun], labels: Sequence[str], axes: Sequence[str], same_value: bool
) -> dict:
    """Return mean times, speed-ups over the first label, leaders and leads, by axis and label.

    If values of the runs cannot be compared, only mean times are returned.
    """
    counted = {label: [run for run in runs if run.arm == label and run.counts] for label in labels}
    counted = {label: of_arm for label, of_arm in counted.items() if of_arm}
    results: dict = {"times": {}, "speedups": {}, "leaders": {}, "leads": {}, "horizons": {}}
    finished = [run for of_arm in counted.values() for run in of_arm if run.done]
    for axis in axes if finished else ():
        times = {label: {run.seed: run.time(axis) for run in of_arm} for label, of_arm in counted.items()}
        horizon = _horizon(axis, finished)
        results["horizons"][axis] = horizon
        results["times"] |= {(axis, label): mean_time(by_seed.values()) for label, by_seed in times.items()}
        if not same_value:
            continue
        results["speedups"] |= _against(labels[0], times, axis, horizon)
        leader = _leader(times, horizon)
        if leader is not None:
            results["leaders"][axis] = leader
            results["leads"] |= {
                (axis, label): speedup(times[label], times[leader], horizon)
                for label in times
                if label != leader
            }
    return results


def _horizon(axis: str, finished: Iterable[RaceRun]) -> float:
    """Return the smallest budget of these runs; infinity if one is unknown, which needs no cut."""
    costs = [run.costs for run in finished]
    known = all(one.knows(axis) for one in costs)
    return min(one.budget(axis) for one in costs) if known else math.inf


def _check_labels(arms: Sequence[RaceArm], labels: Mapping[str, str]) -> None:
    """Raise `UserError` for a shown name of an arm that the runs do not have."""
    known = {name for arm in arms for name in (arm.name, arm.method)}
    for name in labels:
        if name not in known:
            raise unknown("arm", name, known)


def _metric(records: Sequence[Record], requested: str | None) -> str:
    """Return the requested metric, else the first one evaluated.

    Raises `UserError` if no run was evaluated, or not by the requested metric.
    """
    names = list(dict.fromkeys(name for record in records for name in metric_names(record)))
    if not names:
        raise UserError("no run has been evaluated yet; a report needs at least one evaluation")
    if requested is not None and recorded_name(requested) not in names:
        raise unknown("metric", requested, names)
    return falling(requested or names[0])


def _against(baseline: str, times: Mapping, axis: str, horizon: float) -> dict[tuple[str, str], Speedup]:
    if baseline not in times:
        return {}
    others = [label for label in times if label != baseline]
    return {(axis, label): speedup(times[baseline], times[label], horizon) for label in others}


def _leader(times: Mapping[str, Mapping[int, Time]], horizon: float) -> str | None:
    """Return the arm with the smallest geometric mean of times cut at the horizon; None if no run reached
    the target by then."""
    cuts = {label: [cut(time, horizon) for time in by_seed.values()] for label, by_seed in times.items()}
    if all(time.censored == "right" for of_arm in cuts.values() for time in of_arm):
        return None
    return min(cuts, key=lambda label: np.mean(np.log([time.value for time in cuts[label]])))
