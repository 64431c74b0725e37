"""The runs of an audit from CSV files and the logs of other tools (reports/logs).

A tidy CSV has one evaluation per line:

    method,seed,step,metric,value[,images][,flops][,seconds][,gpu_seconds][,protocol]

Costs are totals since step 0. Other columns are ignored. Within one method, seed and metric, steps increase
down the file, except where a run was resumed: then the later values of a step count.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

import numpy as np

from harness.errors import unknown
from reports.audit.inputs.run_log import AuditArms, AuditRun
from reports.logs.curves import LogCurve, check_values, find_metric, plain_metric
from reports.logs.log_map import LogMap
from reports.logs.read import read_logs_of
from reports.logs.tables import COSTS
from reports.stats.curves import Costs, fit


def read_tidy(file: Path, names: Sequence[str], metric: str) -> AuditArms:
    """Return the runs of these methods from a CSV; see `read_log_arms`."""
    return read_log_arms([file], names, metric)


def read_log_arms(
    sources: Sequence[Path], names: Sequence[str], metric: str, rules: LogMap | None = None
) -> AuditArms:
    """Return the runs of these methods from CSV files and logs.

    Raises `UserError`, which names file and line, for missing columns, invalid numbers, steps or costs that
    decrease, and values that have no logarithm; and for a method or a metric that no source has.
    """
    asked = {normalize("NFC", name): name for name in names}
    seen: dict[str, None] = {}
    seen_metrics: dict[str, None] = {}

    def wanted(method: str, own: str) -> bool:
        seen[method] = seen_metrics[own] = None
        return method in asked and plain_metric(own) == plain_metric(metric)

    where = ", ".join(map(str, sources))
    found = read_logs_of(sources, rules, wanted)
    seen |= dict.fromkeys(curve.method for curve in found.curves)
    for method, name in asked.items():
        if method not in seen:
            raise unknown(f"method in {where}:", name, seen)
    seen_metrics |= dict.fromkeys(curve.metric for curve in found.curves)
    name = find_metric(metric, seen_metrics, where)
    notes = [*found.notes, *([f"'{name}' of the log is read as '{metric}'."] if name != metric else [])]
    runs: dict[str, dict[int, AuditRun]] = {name: {} for name in names}
    for curve in found.curves:
        if curve.method not in asked or curve.metric != name:
            continue
        check_values(curve)
        if any(point.step > 0 for point in curve.points):
            runs[asked[curve.method]][curve.seed] = _run(curve)
        else:
            notes.append(f"{curve.name} has {metric} at step 0 only, so it is excluded from all numbers.")
    return AuditArms(runs, tuple(notes))


def _run(curve: LogCurve) -> AuditRun:
    points = [point for point in curve.points if point.step > 0]
    steps = [point.step for point in points]
    costs = {axis: [p.costs[axis] for p in points] for axis in COSTS if all(axis in p.costs for p in points)}
    totals = {axis: np.array([0.0, *values]) for axis, values in {"steps": steps, **costs}.items()}
    recorded = {point.protocol: {"protocol": point.protocol} for point in points}
    return AuditRun(
        curve.method,
        curve.seed,
        points[0].where,
        fit(steps, [point.value for point in points]),
        Costs(totals["steps"], totals),
        recorded if any(recorded) else {},
    )
