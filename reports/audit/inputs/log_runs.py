"""The runs of logs and MLflow stores for a report, with every method and metric that they hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from harness.errors import UserError
from harness.records.mlflow_store import shown
from reports.audit.inputs.mlflow_runs import (
    early_end_of,
    find_runs,
    logged_run,
    open_for_reading,
    split_experiment,
)
from reports.audit.inputs.read import is_log, is_store
from reports.logs.curves import LogCurve, Understood, check_values, find_metric
from reports.logs.log_map import LogMap
from reports.logs.read import read_logs_of
from reports.logs.tables import COSTS
from reports.race.log_records import LEFT_OUT, LogRecord
from reports.stats.curves import Costs

ENDS = {"FINISHED": "done", "FAILED": "failed", "RUNNING": "running"}


def read_log_records(
    sources: Sequence[str], metric: str | None, rules: LogMap | None = None
) -> tuple[list[LogRecord], str | None, list[str]] | None:
    """Return the runs of logs and stores, the metric's name in them, and notes; None for run directories.

    Raises `UserError` for sources that cannot be read, and for logs together with run directories.
    """
    stores = [source for source in sources if is_store(source)]
    logs = [source for source in sources if source not in stores and is_log(Path(source))]
    if not stores and not logs:
        return None
    if rest := [source for source in sources if source not in (*stores, *logs)]:
        raise UserError(
            f"{rest[0]} holds run directories and {shown((*stores, *logs)[0])} logs, which one report cannot "
            "compare; "
            "give one kind"
        )
    where = ", ".join(map(shown, sources))
    found = read_logs_of([Path(log) for log in logs], rules) if logs else Understood(())
    records, notes = _of_logs(found.curves), list(found.notes)
    for store in stores:
        records += _of_store(store, metric)
    name = _metric(records, metric, where)
    notes += [f"'{name}' of the log is read as '{metric}'."] if metric not in (None, name) else []
    for curve in found.curves:
        if curve.metric == name:
            check_values(curve)
    return _once(records), name, [LEFT_OUT, *notes]


def only_metric(sources: Sequence[str], rules: LogMap | None = None) -> str | None:
    """Return the metric of logs that hold only one; None for other sources."""
    if not all(is_log(Path(source)) and not is_store(source) for source in sources):
        return None
    found = {curve.metric for curve in read_logs_of([Path(source) for source in sources], rules).curves}
    return found.pop() if len(found) == 1 else None


def _metric(records: Sequence[LogRecord], asked: str | None, where: str) -> str:
    """Return the requested metric as logs name it, or their only one; raises `UserError` otherwise."""
    known = sorted({name for record in records for values in record.values.values() for name in values})
    if asked is not None:
        return find_metric(asked, known, where)
    if len(known) > 1:
        raise UserError(
            f"{where}: several metrics ({', '.join(known)}); give one, for example --metric {known[0]}"
        )
    return known[0]


def _of_logs(curves: Sequence[LogCurve]) -> list[LogRecord]:
    runs: dict[tuple[str, int], list[LogCurve]] = {}
    for curve in curves:
        runs.setdefault((curve.method, curve.seed), []).append(curve)
    return [_of_curves(*key, own) for key, own in runs.items()]


def _of_curves(method: str, seed: int, curves: Sequence[LogCurve]) -> LogRecord:
    values: dict[int, dict[str, float]] = {}
    costs: dict[int, dict[str, float]] = {}
    for curve in curves:
        for point in curve.points:
            # Values of the shown metric are checked; others do not matter.
            if np.isfinite(point.value):
                values.setdefault(point.step, {})[curve.metric] = point.value
                costs.setdefault(point.step, {}).update(point.costs)
    protocols = {
        curve.metric: " or ".join(sorted({point.protocol for point in curve.points})) for curve in curves
    }
    steps = [step for step in sorted(values) if step > 0]
    axes = [axis for axis in COSTS if steps and all(axis in costs[step] for step in steps)]
    totals = {"steps": _totals(steps)} | {a: _totals(costs[step][a] for step in steps) for a in axes}
    return LogRecord(
        Path(curves[0].source),
        method=method,
        seed=seed,
        values=dict(sorted(values.items())),
        costs=Costs(totals["steps"], totals),
        recorded_protocols=protocols,
    )


def _of_store(store: str, metric: str | None) -> list[LogRecord]:
    uri, experiment = split_experiment(store)
    records = []
    with open_for_reading(uri) as client:
        for run in find_runs(client, experiment):
            if (found := logged_run(client, run, metric)) is not None:
                method, seed, values, costs, protocols = found
                end = ENDS.get(run.info.status, "stopped")
                records.append(
                    LogRecord(
                        Path(f"MLflow run {run.info.run_id}"),
                        method=method,
                        seed=seed,
                        values=values,
                        costs=costs,
                        recorded_protocols={name: protocols for own in values.values() for name in own},
                        end=end,
                        early=early_end_of(run),
                    )
                )
    if not records:
        raise UserError(f"{shown(store)}: no run has a method, a seed and {metric or 'an evaluated metric'}")
    return records


def _once(records: Sequence[LogRecord]) -> list[LogRecord]:
    """Return the records without failed runs whose seed has a finished one."""
    ended = {(record.method, record.seed) for record in records if record.status == "done"}
    return [r for r in records if r.status == "done" or (r.method, r.seed) not in ended]


def _totals(values: Iterable[float]) -> np.ndarray:
    return np.array([0.0, *values])
