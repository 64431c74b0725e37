"""The report as one JSON object; open ends of intervals are null."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reports.analysis.performance_profile import Profile
from reports.analysis.report import RaceReport
from reports.analysis.rows import arm_rows, mlperf_rows
from reports.pages.conditions import ranking_changes
from reports.pages.gradients import reading
from reports.race.by_attribute import AttributeRace
from reports.race.gradients import GradientArm
from reports.race.views import View
from reports.race.workloads import PooledSpeedup, Workload
from reports.stats.speedup import Speedup


def to_json(report: RaceReport, claims: Sequence[Mapping[str, Any]], html: str) -> str:
    """Return all numbers of a page; `claims` have the form of `flowrace audit --json`."""
    race = report.race
    content = {
        "name": race.name,
        "metric": race.metric,
        "target": race.target,
        "target_chosen_after_the_fact": race.target is not None and not race.target_given,
        "protocol": report.race.protocol,
        "target_rule": None if race.rule is None else str(race.rule),
        "target_found": report.how_found,
        "targets": [_at_target(one) for one in (report, *report.at_other_targets)],
        "baseline": race.baseline,
        "across": report.across,
        "arms": [{"label": arm.label, "name": arm.name, "method": arm.method} for arm in race.arms],
        "verdict": report.verdict,
        "caveats": list(report.caveats),
        "claims": claims,
        "rows": _named(report, report.arm_rows),
        "cells": [row for workload in report.workloads for row in _of_workload(workload)],
        "pooled": [_pooled(key, pooled) for key, pooled in report.pooled.items()],
        "profiles": [row for profile in report.profiles.values() for row in _of_profile(profile)],
        "views": [_of_view(view) for view in report.views],
        "ranking_changes": ranking_changes(report) or None,
        "gradients": [_of_gradients(arm) for arm in (report.gradients.arms if report.gradients else ())],
        "mlperf": mlperf_rows(race),
        "by_attribute": [_of_attribute(report, one) for one in report.by_attribute],
        "finals": report.final_value_rows,
        "runs": _named(report, report.run_rows),
        "html": html,
    }
    return json.dumps(content, indent=1, allow_nan=False)


def _at_target(report: RaceReport) -> dict[str, Any]:
    """Return the verdict and the numbers at one target of a list."""
    rule = report.race.rule
    about = {
        "rule": None if rule is None else str(rule),
        "value": report.race.target,
        "found": report.how_found,
    }
    return about | {"verdict": report.verdict, "rows": _named(report, report.arm_rows)}


def _named(report: RaceReport, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with `arm`, the label without `[labels]`, where the shown name is another."""
    names = {arm.label: arm.name for arm in report.race.arms if arm.label != arm.name}
    return [dict(row) | ({"arm": names[row["method"]]} if row["method"] in names else {}) for row in rows]


def _of_view(view: View) -> dict[str, Any]:
    """Return the ranking of the arms under one set of conditions."""
    ranking = [
        {
            "method": label,
            "rank": arm.rank,
            "step": arm.step,
            **arm.value._asdict(),
            "difference": None if arm.difference is None else arm.difference._asdict(),
        }
        for label, arm in view.ranking.items()
    ]
    return {"conditions": view.name, "protocol": view.race.protocol, "ranking": ranking}


def _of_attribute(report: RaceReport, one: AttributeRace) -> dict[str, Any]:
    """Return the times and speed-ups of the race by one attribute of the captions."""
    about = {"attribute": one.attribute, "metric": one.race.metric, "target": one.race.target}
    return about | {"samples": one.samples, "rows": _named(report, arm_rows(one.race))}


def _of_workload(workload: Workload) -> Iterator[dict[str, Any]]:
    """Yield the speed-ups of one cell, or the reason if nothing is compared in it."""
    about = {"cell": workload.label, "target": workload.target}
    if workload.why:
        yield about | {"why": workload.why}
    for (axis, objective), gain in workload.speedups.items():
        yield about | {"axis": axis, "objective": objective, **_gain(gain)}


def _of_gradients(arm: GradientArm) -> dict[str, Any]:
    """Return the means of an arm over its last quarter of readings, and what they mean."""
    features = {
        place: {"norm": norm._asdict(), "sameness": sameness._asdict()}
        for place, (norm, sameness) in arm.features.items()
    }
    return {
        "method": arm.arm,
        "state": arm.state,
        "reading": reading(arm),
        "steps": [arm.first, arm.last],
        "blocks": arm.blocks,
        **{name: mean._asdict() for name, mean in arm.means.items()},
        "features": features,
    }


def _pooled(key: tuple[str, str], pooled: PooledSpeedup) -> dict[str, Any]:
    axis, objective = key
    cells = {"cells": list(pooled.cells), "left_out": list(pooled.left_out)}
    return {"axis": axis, "objective": objective, "by_seed": pooled.by_seed, **_gain(pooled.gain), **cells}


def _of_profile(profile: Profile) -> Iterator[dict[str, Any]]:
    ends = profile.interval()
    for number, (objective, area) in enumerate(zip(profile.objectives, profile.area(), strict=True)):
        low, high = (None, None) if ends is None else map(float, ends[number])
        row = {"axis": profile.axis, "objective": objective, "area": float(area), "low": low, "high": high}
        yield row | {"problems": profile.ratios.shape[1], "left_out": profile.left_out}


def _gain(gain: Speedup) -> dict[str, Any]:
    ends = {"speedup": gain.estimate, "low": gain.low or None, "high": gain.high}
    closed = {key: x if x is None or math.isfinite(x) else None for key, x in ends.items()}
    return {**closed, "pairs": gain.n, "direction": gain.direction}
