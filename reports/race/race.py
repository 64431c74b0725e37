"""The complete race as numbers: runs, arms, target, times, speed-ups, and notes on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.errors import UserError, unknown
from harness.records.record import Record, find_records
from harness.records.study_folder import PlanEntry, PlanExclusion
from reports.race.arms import RaceArm, arms_of, differing_paths, find_arm
from reports.race.comparability import comparable_axes, values_differ
from reports.race.run import RaceRun, cross, run_of
from reports.race.study_folder import read_plan, read_study, split_by_plan
from reports.stats.curves import reachable_target
from reports.stats.speedup import MeanTime, Speedup, Time, cut, mean_time, speedup


@dataclass(frozen=True)
class Race:
    """The results of a race, before any rendering. Mappings have the keys (axis, arm label), or the axis."""

    name: str
    metric: str
    target: float | None
    """None if no run is finished yet."""
    target_given: bool
    baseline: str
    axes: tuple[str, ...]
    arms: tuple[RaceArm, ...]
    """The baseline first."""
    runs: tuple[RaceRun, ...]
    times: Mapping[tuple[str, str], MeanTime]
    speedups: Mapping[tuple[str, str], Speedup]
    """Over the baseline."""
    leaders: Mapping[str, str]
    """The arm with the smallest mean time on an axis; no entry when no run reached the target."""
    leads: Mapping[tuple[str, str], Speedup]
    """Speed-ups of the leader over every other arm."""
    horizons: Mapping[str, float]
    missing: tuple[PlanEntry, ...]
    unplanned: tuple[Record, ...]
    notes: tuple[str, ...]
    plan: tuple[PlanEntry, ...] = ()
    excluded: tuple[PlanExclusion, ...] = ()

    def of(self, label: str) -> list[RaceRun]:
        """Return the runs of an arm, by seed."""
        return [run for run in self.runs if run.arm == label]

    @property
    def candidates(self) -> list[str]:
        return [arm.label for arm in self.arms if arm.label != self.baseline]


def read_race(
    directories: Sequence[Path],
    *,
    metric: str | None = None,
    target: float | None = None,
    baseline: str | None = None,
) -> Race:
    """Read the runs in these folders and compare them; arguments default to the values in `study.toml`.

    The study's target holds only for the study's metric. Without a target, the lowest value that every run
    reaches is used and reported as chosen after the fact. A metric that rises during training has no times
    to target, so nothing is compared. Raises `UserError` for folders without runs, unknown names and broken
    records.
    """
    if target is not None and not (math.isfinite(target) and target > 0):
        raise UserError(f"target {target:g}: expected a number above 0")
    study, plan = read_study(directories), read_plan(directories)
    records, unplanned = split_by_plan(find_records(*directories), directories)
    if not records:
        raise UserError(f"no runs in {', '.join(map(str, directories))}: a run is a folder with a spec.toml")
    order = {run.id: place for place, run in enumerate(plan.runs)}
    arms, notes = _baseline_first(arms_of(records), baseline, study.baseline, order)
    metric = _metric(records, metric or study.metric)
    runs = [run_of(arm.label, seed, record, metric) for arm in arms for seed, record in arm.runs.items()]
    given = target if target is not None else study.target_of(metric)
    goal = given if given is not None else reachable_by_all(runs)
    runs = [cross(run, goal) for run in runs]
    axes, axis_notes = comparable_axes(runs)
    return Race(
        name=study.name or directories[0].resolve().name,
        metric=metric,
        target=goal,
        target_given=given is not None,
        baseline=arms[0].label,
        axes=axes,
        arms=tuple(arms),
        runs=tuple(runs),
        missing=tuple(run for run in plan.runs if run.id not in {record.id for record in records}),
        unplanned=tuple(unplanned),
        notes=(*notes, *axis_notes),
        plan=plan.runs,
        excluded=plan.exclusions,
        **compare_runs(runs, [arm.label for arm in arms], axes, not values_differ(runs)),
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
        horizon = min(run.costs.budget(axis) for run in finished)
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


def reachable_by_all(runs: Sequence[RaceRun]) -> float | None:
    """Return the lowest target that every finished run reaches; None if no run is finished."""
    curves = [run.curve for run in runs if run.done]
    return reachable_target(curves) if curves else None


def _baseline_first(
    arms: list[RaceArm], requested: str | None, study: str | None, order: Mapping[str, int]
) -> tuple[list[RaceArm], list[str]]:
    """Return the arms with the baseline first, and notes.

    A requested baseline must match a single arm. A default one may match several, of which the first in the
    plan (`order`, by run id) is used.
    """
    if requested is not None:
        base, notes = find_arm(arms, requested), []
    else:
        name = study or ("flow" if any(arm.method == "flow" for arm in arms) else arms[0].label)
        matching = [arm for arm in arms if name in (arm.label, arm.method)] or [find_arm(arms, name)]
        base = min(matching, key=lambda arm: min(order.get(run.id, len(order)) for run in arm.runs.values()))
        notes = (
            [f"Baseline '{name}' matches more than one arm; '{base.label}' is used.{_by_cell(matching)}"]
            if len(matching) > 1
            else []
        )
    return [base, *(arm for arm in arms if arm is not base)], notes


def _by_cell(matching: Sequence[RaceArm]) -> str:
    """Return a pointer to the speed-up by cell if these arms differ in more than the objective."""
    workload = [
        path for path in differing_paths(arm.fields for arm in matching) if not path.startswith("method.")
    ]
    return " Speed-up by cell compares each cell with its own baseline." if workload else ""


def _metric(records: Sequence[Record], requested: str | None) -> str:
    """Return the requested metric, else the first one evaluated.

    Raises `UserError` if no run was evaluated, or not by the requested metric.
    """
    names = list(
        dict.fromkeys(name for record in records for e in record.of("eval") for name in e["metrics"])
    )
    if not names:
        raise UserError("no run has been evaluated yet; a report needs at least one evaluation")
    if requested is not None and requested not in names:
        raise unknown("metric", requested, names)
    return requested or names[0]


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
