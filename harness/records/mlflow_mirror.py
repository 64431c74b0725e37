"""Mirrors records into MLflow. The record is the truth: a store can be lost and made again from records
alone.

    experiment  the study (runs without one: their folder)
    parent run  the study, with its files as artifacts
    child run   one record: its spec as params, its events as metrics with step, spec and sample grids as
    artifacts

    metric                  unit        from
    train/loss              -           loss of a train event
    train/losses/<part>     -           its named parts
    train/grad_norm         -           before clipping
    train/learning_rate     -
    cost/flops              FLOPs       counted, total since step 0
    cost/seconds/<phase>    seconds     total since step 0
    eval/<metric>           of metric   the mean; eval/<metric>/low and /high where there is an interval

Mirroring twice doubles nothing: a run is found by its id, what it holds already is told by a tag, and
timestamps come from the record (its start + the seconds it booked), so that a point sent again is the same
point. Of a run that is not finished, only what lies before its last checkpoint is mirrored: later events may
be superseded. A server may be written to by several processes at once and may die at any moment; an sqlite
store is written by one process at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.records.flatten import flatten, not_finite, points
from harness.records.mlflow_store import artifact_folder, creating, open_store, shown, store_uri
from harness.records.record import Record, tracked_name

STATUS = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "running": "RUNNING"}
HARDWARE = ("device", "device_name", "threads", "devices")
METRICS_PER_BATCH, PARAMS_PER_BATCH, PARAM_LENGTH, TAG_LENGTH = 1000, 100, 6000, 5000


@dataclass(frozen=True)
class Summary:
    """What a mirroring did; `points` were new to the store."""

    uri: str
    runs: int
    points: int


class Unsent(UserError):
    """Runs that could not be mirrored, one sentence each; all others were, of which `summary` tells."""

    def __init__(self, reasons: Sequence[str], summary: Summary) -> None:
        super().__init__("; ".join(reasons))
        self.reasons, self.summary = reasons, summary


def mirror(
    records: Iterable[Record],
    *,
    study: str,
    uri: str | None = None,
    artifacts: Iterable[Path] = (),
    complete: bool = False,
) -> Summary:
    """Bring a store up to date with records; what it holds already is not sent again.

    The runs are children of the run of a `study`, which holds the `artifacts`. `complete` says that the
    records are the whole study: its run ends as FINISHED when all of them are done, else as FAILED. Raises
    `Unsent` behind the last run where some are broken or refused, `UserError` when MLflow is not installed or
    the store cannot be reached.
    """
    records, reasons = _readable(records)
    sent: list[int] = []
    with open_store(uri) as client:
        with creating(uri):
            experiment = _experiment(client, study, uri)
            parent = _parent(client, experiment, study, records)
        for record in records:
            try:
                sent.append(_mirror_or_refuse(client, experiment, parent, record))
            except UserError as error:
                reasons.append(str(error))
        for file in artifacts:
            client.log_artifact(parent, str(file))
        if complete:
            _close_parent(client, parent, records, broken=bool(reasons))
    summary = Summary(shown(store_uri(uri)), len(sent), sum(sent))
    if reasons:
        raise Unsent(reasons, summary)
    return summary


def durable(record: Record) -> list[dict[str, Any]]:
    """The events that no later start of the run can supersede: all of a finished run, else up to the last
    checkpoint."""
    events = record.events
    if record.status == "done":
        return events
    last = max((i for i, event in enumerate(events) if event["kind"] == "checkpoint"), default=-1)
    return events[: last + 1]


def _readable(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """The records that can be read, and of every other one what is wrong with it."""
    found, reasons = [], []
    for record in records:
        try:
            _ = record.spec, record.events, record.environment, record.failure
            found.append(record)
        except UserError as error:
            reasons.append(str(error))
    return found, reasons


def _mirror_or_refuse(client: Any, experiment: str, parent: str, record: Record) -> int:
    """`_mirror_run`; raises `UserError` where the store does not take what this run holds."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode

    try:
        return _mirror_run(client, experiment, parent, record)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise
        raise UserError(f"cannot mirror {record.path}: {str(error).splitlines()[0]}") from error


def _mirror_run(client: Any, experiment: str, parent: str, record: Record) -> int:
    """Send what a run's store lacks; returns the number of new points."""
    events = durable(record)
    run = _find(client, experiment, "flowrace.run_id", record.id) or _create(client, experiment, record)
    count, digest = _mirrored(run), run.data.tags.get("flowrace.mirrored", "").partition(" ")[2]
    if len(events) < count:  # another folder with the same run is further on
        return 0
    if count and _digest(events[:count]) != digest:  # the record was made anew
        client.delete_run(run.info.run_id)
        return _mirror_run(client, experiment, parent, record)
    fresh = events[count:]
    if not count:
        _log_params(client, run.info.run_id, record)
    sent = _log_points(client, run.info.run_id, record, fresh)
    _log_samples(client, run.info.run_id, record, fresh)
    tags = {
        "flowrace.status": record.status,
        "flowrace.failure": str((record.failure or {}).get("reason", ""))[:TAG_LENGTH],
        "flowrace.not_finite": not_finite(events)[:TAG_LENGTH],
        "flowrace.hardware": json.dumps(_hardware(record)),
        "flowrace.aligned": json.dumps(_aligned(record)),
        "flowrace.mirrored": f"{len(events)} {_digest(events)}",
        "mlflow.parentRunId": parent,
    }
    _set_tags(client, run, tags)
    _set_status(client, run, STATUS[record.status], _end(record, events))
    return sent


def _create(client: Any, experiment: str, record: Record) -> Any:
    method, seed = record.spec.get("method", {}).get("name", ""), record.spec.get("seed", 0)
    tags = {"flowrace.run_id": record.id, "flowrace.method": str(method), "flowrace.seed": str(seed)}
    return client.create_run(experiment, _started(record), tags, f"{method} seed {seed}")


def _hardware(record: Record) -> list[dict[str, Any]]:
    """What each start ran on, every kind once: what an audit of seconds must know."""
    told = [{key: start[key] for key in HARDWARE if key in start} for start in record.environment]
    return [one for n, one in enumerate(told) if one not in told[:n]]


def _aligned(record: Record) -> list[str]:
    """The metrics by a network that the run was trained towards."""
    told = [start.get("evaluation", {}).get("aligned", ()) for start in record.environment]
    return sorted({name for names in told for name in names})


def _log_params(client: Any, run: str, record: Record) -> None:
    """The flattened spec; what is too long for a param is named in a tag and stands in spec.toml."""
    from mlflow.entities import Param, RunTag

    values = {
        tracked_name(key): v if isinstance(v, str) else json.dumps(v, default=str)
        for key, v in flatten(record.spec).items()
    }
    long = [key for key, value in values.items() if len(value) > PARAM_LENGTH]
    for batch in _batches(
        [Param(key, value) for key, value in values.items() if key not in long], PARAMS_PER_BATCH
    ):
        client.log_batch(run, params=batch)
    if long:
        client.log_batch(run, tags=[RunTag("flowrace.only_in_spec", ", ".join(long)[:TAG_LENGTH])])
    client.log_artifact(run, str(record.path / "spec.toml"))


def _log_points(client: Any, run: str, record: Record, events: Iterable[Mapping[str, Any]]) -> int:
    from mlflow.entities import Metric

    metrics = [
        Metric(name, value, _time(record, event), event["step"])
        for event in events
        for name, value in points(event).items()
    ]
    for batch in _batches(metrics, METRICS_PER_BATCH):
        client.log_batch(run, metrics=batch)
    return len(metrics)


def _log_samples(client: Any, run: str, record: Record, events: Iterable[Mapping[str, Any]]) -> None:
    for event in events:
        file = record.path / "samples" / f"step-{event['step']:08d}.png"
        if event["kind"] == "eval" and file.exists():
            client.log_artifact(run, str(file), "samples")


def _parent(client: Any, experiment: str, study: str, records: Sequence[Record]) -> str:
    """The run of a study, created at the start of its first record."""
    run = _find(client, experiment, "flowrace.study", study)
    if run is None:
        start = min(map(_started, records), default=0)
        run = client.create_run(experiment, start, {"flowrace.study": study}, study)
    return run.info.run_id


def _close_parent(client: Any, parent: str, records: Sequence[Record], *, broken: bool) -> None:
    done = not broken and all(record.status == "done" for record in records)
    ended = "FINISHED" if done else "FAILED"
    end = max((_end(record, durable(record)) for record in records), default=0)
    _set_status(client, client.get_run(parent), ended, end)


def _experiment(client: Any, name: str, uri: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    try:
        return client.create_experiment(name, artifact_location=artifact_folder(uri, name))
    except (
        MlflowException
    ):  # another machine was quicker, or the server died behind its commit and was asked again
        if found := client.get_experiment_by_name(name):
            return found.experiment_id
        raise


def _find(client: Any, experiment: str, tag: str, value: str) -> Any:
    """The run with a tag, if there is one. A server that died behind a commit was asked twice to create it:
    of such twins the one that holds most is kept."""
    quote = '"' if "'" in value else "'"
    found = client.search_runs([experiment], f"tags.`{tag}` = {quote}{value}{quote}")
    kept, *twins = sorted(found, key=lambda run: (-_mirrored(run), run.info.run_id)) or [None]
    for twin in twins:
        client.delete_run(twin.info.run_id)
    return kept


def _mirrored(run: Any) -> int:
    """How many events of its record a run holds."""
    return int(run.data.tags.get("flowrace.mirrored", "0").partition(" ")[0])


def _set_tags(client: Any, run: Any, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    changed = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key, "") != value]
    if changed:
        client.log_batch(run.info.run_id, tags=changed)


def _set_status(client: Any, run: Any, status: str, end: int) -> None:
    if status == "RUNNING" and run.info.status != status:
        client.update_run(run.info.run_id, status)
    elif status != "RUNNING" and (run.info.status, run.info.end_time) != (status, end):
        client.set_terminated(run.info.run_id, status, end)


def _started(record: Record) -> int:
    """Milliseconds since 1970 at the run's first start; 1 where the record does not tell (MLflow takes 0 for
    now)."""
    return int(next((start["started"] for start in record.environment if "started" in start), 1))


def _time(record: Record, event: Mapping[str, Any]) -> int:
    return _started(record) + round(1000 * sum(event.get("seconds", {}).values()))


def _end(record: Record, events: Sequence[Mapping[str, Any]]) -> int:
    return max((_time(record, event) for event in events), default=_started(record))


def _digest(events: Sequence[Mapping[str, Any]]) -> str:
    """16 hex digits over events but for their seconds: equal for equal runs."""
    kept = [{key: value for key, value in event.items() if key != "seconds"} for event in events]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
