"""Runs in an MLflow store: those that flowrace mirrored, and any other run with a method and a seed.

The store is only read: an sqlite file and a folder `mlruns` from a temporary copy (mlflow_copy.py). Of each
run these parts are used:
    method and seed  the tags `flowrace.method` and `flowrace.seed`, else the params `method.name` (or
                     `method`) and `seed`
    curve            the history of `eval/<metric>` or `<metric>`
    costs            the histories of `cost/flops` and `cost/seconds/<phase>`
    protocol         the params `eval.*`
    conditions       the tags `flowrace.hardware` and `flowrace.aligned`
    early end        the tag `flowrace.ended`
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from harness.errors import UserError, first_line, unknown
from harness.files.parse import parse_json
from harness.records.early_end import EarlyEnd, parse_early_end
from harness.records.mlflow_copy import copied_database, copied_file_store
from harness.records.mlflow_store import SQLITE, is_address, quiet_mlflow, shown
from harness.records.record import TRAINING_PHASES, tracked_name
from reports.audit.inputs.run_log import FREE, AuditArms, AuditRun, Progress, ReadRun, collect_arms
from reports.race.comparability import machine_kinds
from reports.stats.curves import Costs, fit

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LARGEST = 1.7976931348623157e308
"""The number that database stores keep instead of infinity."""
PAGE = 1000
"""Experiments or runs that a store returns at once."""


def read_tracked(source: str, names: Sequence[str], metric: str, progress: Progress = iter) -> AuditArms:
    """Return the runs of these methods from a store: `sqlite:///FILE`, a folder `mlruns`, or a server on this
    machine.

    A trailing `#NAME` selects one experiment. Raises `UserError` for a store that does not exist or is on
    another machine, and for methods and metrics that it does not contain.
    """
    uri, experiment = split_experiment(source)
    with open_for_reading(uri) as client:
        runs = [run for run in find_runs(client, experiment) if _method(run)]
        for name in names:
            if name not in map(_method, runs):
                raise unknown(f"method in {shown(uri)}:", name, {str(_method(run)) for run in runs})
        found = [
            _read_run(client, run, metric) for run in progress([run for run in runs if _method(run) in names])
        ]
    if not any(one.log for one in found):
        raise UserError(f"no finished run of {' or '.join(names)} in {shown(uri)} has the metric '{metric}'")
    try:
        return collect_arms(found, names)
    except UserError as error:
        raise UserError(f"{error}; to read one experiment, give {shown(uri)}#NAME") from error


def split_experiment(source: str) -> tuple[str, str]:
    """Return the store and the experiment's name, which is empty if none is given.

    A `#` may also be part of the path: the longest path that exists is the store.
    """
    scheme = SQLITE if source.startswith(SQLITE) else ""
    cuts = [len(source), *(place for place in range(len(source) - 1, -1, -1) if source[place] == "#")]
    if not source.startswith("http"):
        for cut in cuts:
            if Path(source[:cut].removeprefix(scheme)).exists():
                return source[:cut], source[cut + 1 :]
    uri, _, experiment = source.partition("#")
    return uri, experiment


@contextmanager
def open_for_reading(uri: str) -> Iterator[Any]:
    """Yield an `MlflowClient` of a store that is not written; raises `UserError` if it cannot be read."""
    if uri.startswith("http") and not (is_address(uri) and urlsplit(uri).hostname in LOOPBACK):
        raise UserError(f"{shown(uri)}: only a server on this machine can be read ({', '.join(LOOPBACK)})")
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _client(uri) if not uri.startswith("http") else nullcontext(MlflowClient(uri)) as client:
            yield client
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(shown(f"cannot read {uri}: {first_line(error)}")) from error


def _client(uri: str) -> AbstractContextManager[Any]:
    """Return a client of a copy of a local store."""
    path = Path(uri.removeprefix(SQLITE))
    if uri.startswith("sqlite"):
        if not uri.startswith(SQLITE) or not path.is_file():
            raise UserError(f"{shown(uri)}: no such store; expected sqlite:///FILE with an existing file")
        return copied_database(path)
    return copied_file_store(path)


def find_runs(client: Any, experiment: str) -> Iterator[Any]:
    """Yield the runs of one experiment, or of all if the name is empty.

    Raises `UserError` for an unknown experiment.
    """
    known = {found.name: found.experiment_id for found in _pages(client.search_experiments)}
    if experiment and experiment not in known:
        raise unknown("experiment", experiment, known)
    wanted = [known[experiment]] if experiment else list(known.values())
    if wanted:
        yield from _pages(partial(client.search_runs, wanted))


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Yield the results of all pages of a search."""
    page = search(max_results=PAGE)
    yield from page
    while page.token:
        page = search(max_results=PAGE, page_token=page.token)
        yield from page


def _method(run: Any) -> str | None:
    return (
        run.data.tags.get("flowrace.method")
        or run.data.params.get("method.name")
        or run.data.params.get("method")
    )


def _read_run(client: Any, run: Any, metric: str) -> ReadRun:
    params, name, run_id = run.data.params, f"{_method(run)} (run {run.info.run_id})", run.info.run_id
    seed = run.data.tags.get("flowrace.seed") or params.get("seed") or ""
    if not re.fullmatch(r"-?[0-9]+", seed):
        raise UserError(
            f"{name}: seed = '{seed}': expected a whole number in the tag flowrace.seed or the param seed"
        )
    stored = tracked_name(metric)
    key = next((key for key in (f"eval/{stored}", stored) if key in run.data.metrics), None)
    method, failed = str(_method(run)), run.info.status == "FAILED"
    if not failed and run.info.status != "FINISHED":
        why = f"{name} is {run.info.status.lower()}, so it is excluded from all numbers."
        return ReadRun(method, int(seed), False, None, why)
    if key is None:
        why = "failed before its first evaluation" if failed else "was never evaluated"
        return ReadRun(method, int(seed), failed, None, f"{name} {why} by {metric}.")
    _check_left_out(run, key, name)
    values, again = _history(client, run_id, key, name)
    hardware = _tag(run, "flowrace.hardware")
    steps = [step for step in values if step > 0]
    if not steps:
        why = f"{name} records {metric} at step 0 only, so it is excluded from all numbers."
        return ReadRun(method, int(seed), failed, None, why)
    log = AuditRun(
        method,
        int(seed),
        f"MLflow run {run_id}",
        fit(steps, [values[step] for step in steps]),
        _costs(client, run, steps, name, _devices(hardware)),
        protocols_of_params(params),
        tuple(machine_kinds(hardware)),
        settings={
            k: v
            for k, v in params.items()
            if k.startswith(("train.", "backbone.", "data.name", "time.", "ema."))
        },
        started=run.info.start_time,
        ended=run.info.end_time,
        aligned=metric in _tag(run, "flowrace.aligned"),
        failed=failed,
        early=early_end_of(run),
    )
    notes = [f"{name} failed: censored after its last evaluation."] if failed else []
    notes += (
        [f"{name}: {key} was logged again at {len(again)} steps; the last value counts."] if again else []
    )
    return ReadRun(method, int(seed), failed, log, " ".join(notes))


def logged_run(
    client: Any, run: Any, metric: str | None
) -> tuple[str, int, dict[int, dict[str, float]], Costs, str] | None:
    """Return method, seed, values by step and metric, costs and protocol of a run.

    Without `metric` every evaluated metric is read. The result is None for a run without a method, a seed or
    a value.
    """
    method, name = _method(run), f"{_method(run)} (run {run.info.run_id})"
    seed = run.data.tags.get("flowrace.seed") or run.data.params.get("seed") or ""
    if method is None or not re.fullmatch(r"-?[0-9]+", seed):
        return None
    keys = {key.removeprefix("eval/"): key for key in _evaluated(run)}
    if metric is not None:
        stored = tracked_name(metric)
        known = [key for key in (f"eval/{stored}", stored) if key in run.data.metrics]
        keys = {metric: known[0]} if known else {}
    values: dict[int, dict[str, float]] = {}
    for own, key in keys.items():
        _check_left_out(run, key, name)
        for step, value in _history(client, run.info.run_id, key, name)[0].items():
            values.setdefault(step, {})[own] = value
    if not any(step > 0 for step in values):
        return None
    devices = _devices(_tag(run, "flowrace.hardware"))
    costs = _costs(client, run, sorted(step for step in values if step > 0), name, devices)
    return (
        method,
        int(seed),
        dict(sorted(values.items())),
        costs,
        next(iter(protocols_of_params(run.data.params)), ""),
    )


def _evaluated(run: Any) -> list[str]:
    """Return the keys of a run's evaluations: those below `eval/`, else all that measure no training."""
    keys = sorted(run.data.metrics)
    own = [key for key in keys if re.fullmatch(r"eval/[^/]+", key)]
    return own or [key for key in keys if not key.startswith(("train", "cost/", "system/"))]


def _check_left_out(run: Any, key: str, name: str) -> None:
    """Raise `UserError` if the record of a mirrored run has a value that is not a finite number."""
    for lost in run.data.tags.get("flowrace.not_finite", "").split("; "):
        if lost.startswith(f"{key} at step "):
            raise UserError(f"{name}: {lost}: expected a finite number")


def _history(client: Any, run: str, key: str, name: str) -> tuple[dict[int, float], set[int]]:
    """Return values by step, ascending, and the steps that were logged again with another value.

    The last value of a step counts. Raises `UserError` for a value that is not finite, and for two values of
    a step with equal times.
    """
    found: dict[int, float] = {}
    times: dict[int, int] = {}
    again: set[int] = set()
    for point in sorted(client.get_metric_history(run, key), key=lambda point: point.timestamp):
        if not math.isfinite(point.value) or abs(point.value) >= LARGEST:
            value = "nan" if math.isnan(point.value) else f"{math.copysign(math.inf, point.value)}"
            raise UserError(f"{name}: {key} at step {point.step} is {value}: expected a finite number")
        if point.step in found and found[point.step] != point.value:
            if times[point.step] == point.timestamp:
                raise UserError(f"{name}: {key} has two values at step {point.step}, logged at the same time")
            again.add(point.step)
        found[point.step], times[point.step] = point.value, point.timestamp
    return dict(sorted(found.items())), again


def _tag(run: Any, tag: str) -> list[Any]:
    """Return the list in one of flowrace's tags; empty for a run without it.

    Raises `UserError` if the tag is not a JSON list.
    """
    try:
        found = parse_json(run.data.tags.get(tag, "[]"))
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise UserError(f"MLflow run {run.info.run_id}: the tag {tag} is not a list; mirror the run again")
    return found


def _costs(client: Any, run: Any, steps: list[int], name: str, devices: int | None) -> Costs:
    """Return the cumulative costs, for the axes that were logged."""
    phases = [
        f"cost/seconds/{phase}" for phase in TRAINING_PHASES if f"cost/seconds/{phase}" in run.data.metrics
    ]
    logged = {key: _history(client, run.info.run_id, key, name)[0] for key in phases}
    flops = (
        _history(client, run.info.run_id, "cost/flops", name)[0] if "cost/flops" in run.data.metrics else {}
    )
    grid = np.array(
        sorted({0, *steps, *(step for own in [*logged.values(), flops] for step in own)}), dtype=float
    )
    totals = {"steps": grid}
    if (batch := run.data.params.get("train.batch_size", "")).isdecimal():
        totals["images"] = grid * float(batch)
    if flops:
        totals["flops"] = _on(grid, flops)
    if logged:
        totals["seconds"] = sum((_on(grid, own) for own in logged.values()), np.zeros_like(grid))
        totals |= {} if devices is None else {"gpu_seconds": devices * totals["seconds"]}
    early = early_end_of(run)
    return Costs(grid, totals) if early is None else Costs(grid, totals).of_early_end(early)


def early_end_of(run: Any) -> EarlyEnd | None:
    """Return where a mirrored run ended before its last step; raises `UserError` if the tag is no early
    end."""
    text = run.data.tags.get("flowrace.ended", "")
    try:
        return parse_early_end(parse_json(text)) if text else None
    except ValueError as error:
        raise UserError(
            f"MLflow run {run.info.run_id}: the tag flowrace.ended is no early end; mirror the run again"
        ) from error


def _devices(starts: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the number of devices; None if it is not recorded or changed during the run."""
    counts = {start.get("devices", 1) for start in starts}
    return counts.pop() if len(counts) == 1 else None


def _on(grid: np.ndarray, history: Mapping[int, float]) -> np.ndarray:
    known = {0: 0.0, **history}
    return np.interp(grid, list(known), list(known.values()))


def protocols_of_params(params: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """Return the protocol: the `eval.*` params that change what a value means, else the param `protocol`.

    Empty if the run has neither.
    """
    fields = {k: v for k, v in params.items() if k.startswith("eval.") and k.split(".")[1] not in FREE}
    if "eval.guidance" in fields:
        # The curves of a store without suffix have the first of several scales, such as [1.0, 2.0].
        fields["eval.guidance"] = fields["eval.guidance"].strip("[]").partition(",")[0]
    fields |= {k: params[k] for k in ("data.fingerprint", "protocol") if fields and k in params}
    if fields:
        return {"; ".join(f"{key} = {value}" for key, value in sorted(fields.items())): fields}
    return {params["protocol"]: {"protocol": params["protocol"]}} if "protocol" in params else {}
