"""The whole race as numbers: runs, arms, target, times, speed-ups, and the notes that belong to them."""

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
    """What a report says, before it is words, pictures or tables. Mappings by axis and arm label."""

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
    """Of the leader over every other arm."""
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
    """Read the runs in these folders and compute everything; what is not given comes from `study.toml`.

    Without any target it is the lowest value that every run reaches, and called chosen after the fact; the
    study's is of the study's metric alone. Of a metric that rises as training goes on there are no times,
    so nothing is compared. Raises `UserError` for folders without runs, unknown names and broken records.
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
    axes, apart = comparable_axes(runs)
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
        notes=(*notes, *apart),
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
    counted = {label: own for label, own in counted.items() if own}
    found: dict = {"times": {}, "speedups": {}, "leaders": {}, "leads": {}, "horizons": {}}
    finished = [run for own in counted.values() for run in own if run.done]
    for axis in axes if finished else ():
        times = {label: {run.seed: run.time(axis) for run in own} for label, own in counted.items()}
        horizon = min(run.costs.budget(axis) for run in finished)
        found["horizons"][axis] = horizon
        found["times"] |= {(axis, label): mean_time(own.values()) for label, own in times.items()}
        if not same_value:
            continue
        found["speedups"] |= _against(labels[0], times, axis, horizon)
        leader = _leader(times, horizon)
        if leader is not None:
            found["leaders"][axis] = leader
            found["leads"] |= {
                key: speedup(times[key[1]], times[leader], horizon)
                for key in ((axis, label) for label in times if label != leader)
            }
    return found


def reachable_by_all(runs: Sequence[RaceRun]) -> float | None:
    """Return the lowest target that every finished run reaches; None if none is."""
    curves = [run.curve for run in runs if run.done]
    return reachable_target(curves) if curves else None


def _baseline_first(
    arms: list[RaceArm], asked: str | None, study: str | None, order: Mapping[str, int]
) -> tuple[list[RaceArm], list[str]]:
    """Return the arms with the baseline first, and notes.

    A requested baseline must match a single arm. A default one may match several, of which the first in the
    plan (`order`, by run id) is used.
    """
    if asked is not None:
        base, notes = find_arm(arms, asked), []
    else:
        name = study or ("flow" if any(arm.method == "flow" for arm in arms) else arms[0].label)
        same = [arm for arm in arms if name in (arm.label, arm.method)] or [find_arm(arms, name)]
        base = min(same, key=lambda arm: min(order.get(run.id, len(order)) for run in arm.runs.values()))
        notes = (
            [f"Baseline '{name}' matches more than one arm; '{base.label}' is used.{_apart(same)}"]
            if len(same) > 1
            else []
        )
    return [base, *(arm for arm in arms if arm is not base)], notes


def _apart(same: Sequence[RaceArm]) -> str:
    """Return where to look if these arms differ in more than the objective."""
    workload = [
        path for path in differing_paths(arm.fields for arm in same) if not path.startswith("method.")
    ]
    return " Speed-up by cell compares each cell with its own baseline." if workload else ""


def _metric(records: Sequence[Record], asked: str | None) -> str:
    """Return the requested metric, else the first one evaluated; raises `UserError` if there is none."""
    names = list(
        dict.fromkeys(name for record in records for e in record.of("eval") for name in e["metrics"])
    )
    if not names:
        raise UserError("no run has been evaluated yet; a report needs at least one evaluation")
    if asked is not None and asked not in names:
        raise unknown("metric", asked, names)
    return asked or names[0]


def _against(baseline: str, times: Mapping, axis: str, horizon: float) -> dict[tuple[str, str], Speedup]:
    if baseline not in times:
        return {}
    others = [label for label in times if label != baseline]
    return {(axis, label): speedup(times[baseline], times[label], horizon) for label in others}


def _leader(times: Mapping[str, Mapping[int, Time]], horizon: float) -> str | None:
    """Return the arm with the smallest geometric mean of times cut at the horizon; None if nobody got
    there."""
    cuts = {label: [cut(time, horizon) for time in own.values()] for label, own in times.items()}
    if all(time.censored == "right" for own in cuts.values() for time in own):
        return None
    return min(cuts, key=lambda label: np.mean(np.log([time.value for time in cuts[label]])))
