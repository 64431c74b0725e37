"""The mirror of records in MLflow. A lost store can be rebuilt from the records alone.

    experiment  the study; for runs without one, their folder
    parent run  the study, with its files as artifacts
    child run   one record: its spec as params, its events as metrics with step,
                its spec file and sample grids as artifacts

    metric                  unit        from
    train/loss              -           loss of a train event
    train/losses/<part>     -           its named parts
    train/grad_norm         -           norm before clipping
    train/learning_rate     -           learning rate of the step
    cost/flops              FLOPs       counted, total since step 0
    cost/seconds/<phase>    seconds     total since step 0
    gradients/<what>        -           share, cosine, norms, features of a gradients event
    eval/<metric>           of metric   mean; also eval/<metric>/low and /high if it has an interval
    eval/<metric>/<what>    of metric   the same, measured later under other conditions (guidance_1.5)

Mirroring is idempotent. A run is found by its id, and a tag records how many events were sent. Timestamps
are the run's start plus the seconds it has booked, so a point that is sent again is the same point. Of an
unfinished run only events up to its last checkpoint are mirrored, because later ones may be superseded.
Several processes may write to a server, which may fail at any moment. An sqlite store is locked, so that
one process writes at a time.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError, first_line
from harness.files.names import check_name
from harness.records.evaluations import conditions_of, read_evaluations
from harness.records.flatten import flatten, not_finite, points
from harness.records.mlflow_store import artifact_folder, creating, open_store, shown, store_uri
from harness.records.record import Record, tracked_name

STATUS = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "running": "RUNNING"}
HARDWARE = ("device", "device_name", "threads", "devices")
METRICS_PER_BATCH, PARAMS_PER_BATCH, PARAM_LENGTH, TAG_LENGTH = 1000, 100, 6000, 5000


@dataclass(frozen=True)
class Summary:
    """The result of mirroring: the store, the mirrored runs, and the number of new points."""

    uri: str
    runs: int
    points: int


class Unsent(UserError):
    """Some runs could not be mirrored, for one reason each; `summary` describes the mirrored ones."""

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
    """Bring a store up to date with records, sending only new events.

    The runs become children of the run of `study`, which holds the `artifacts`. Pass `complete` if the
    records are the full study: its run then ends as FINISHED if all of them are done, else as FAILED.

    Raises `UserError` for a name of a study that is a path, before anything is written, and if MLflow is not
    installed or the store cannot be reached. Raises `Unsent`, after
    mirroring the others, if some records are broken or rejected by the store.
    """
    # It becomes the name of an experiment, whose artifacts are in a folder of that name.
    check_name(study, "the name of the study")
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
    """Return the events that no later start of the run can supersede.

    Those are all events of a finished run, else the events up to the last checkpoint.
    """
    events = record.events
    if record.status == "done":
        return events
    last = max((i for i, event in enumerate(events) if event["kind"] == "checkpoint"), default=-1)
    return events[: last + 1]


def later_events(record: Record) -> list[dict[str, Any]]:
    """Return the evaluations that were measured after training, as events.

    Metrics under other conditions than those of training are named by what differs. An evaluation that was
    only repeated, with more replicates, is left out, so that a store has one value for each step.
    """
    trained = [event for event in record.events if event["kind"] == "eval"]
    known = {(event["step"], name) for event in trained for name in event["metrics"]}
    first = conditions_of(str(trained[0].get("protocol")), record.protocols) if trained else None
    found = []
    for conditions in record.views:
        what = conditions.name([first]) if first is not None else ""
        for event in record.under(conditions).of("eval"):
            metrics = {
                f"{name}/{what}" if what else name: row
                for name, row in event["metrics"].items()
                if what or (event["step"], name) not in known
            }
            if metrics:
                found.append(event | {"metrics": metrics})
    return found


def _readable(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """Return the readable records, and for each of the others an error message."""
    readable, reasons = [], []
    for record in records:
        try:
            _ = record.spec, record.events, record.environment, record.failure
            readable.append(record)
        except UserError as error:
            reasons.append(str(error))
    return readable, reasons


def _mirror_or_refuse(client: Any, experiment: str, parent: str, record: Record) -> int:
    """Mirror a run; raises `UserError` if the store rejects a value of the run as invalid."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode

    try:
        return _mirror_run(client, experiment, parent, record)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise
        raise UserError(f"cannot mirror {record.path}: {first_line(error)}") from error


def _mirror_run(client: Any, experiment: str, parent: str, record: Record) -> int:
    """Send the events of a run that the store lacks, and return the number of new points."""
    events = durable(record)
    run = _find(client, experiment, "flowrace.run_id", record.id) or _create(client, experiment, record)
    count, digest = _mirrored(run), run.data.tags.get("flowrace.mirrored", "").partition(" ")[2]
    # The store was filled from another folder in which the same run has got further.
    if len(events) < count:
        return 0
    # The run was deleted and trained from scratch.
    if count and _digest(events[:count]) != digest:
        client.delete_run(run.info.run_id)
        return _mirror_run(client, experiment, parent, record)
    fresh = events[count:]
    if not count:
        _log_params(client, run.info.run_id, record)
    sent = _log_points(client, run.info.run_id, record, fresh)
    _log_samples(client, run.info.run_id, record, fresh)
    lines = str(len(read_evaluations(record.path)))
    if lines != run.data.tags.get("flowrace.evaluations", "0"):
        sent += _log_points(client, run.info.run_id, record, later_events(record))
    tags = {
        **({"flowrace.evaluations": lines} if lines != "0" else {}),
        "flowrace.status": record.status,
        "flowrace.failure": str((record.failure or {}).get("reason", ""))[:TAG_LENGTH],
        "flowrace.not_finite": not_finite(events)[:TAG_LENGTH],
        "flowrace.ended": json.dumps(record.early_end.row()) if record.early_end else "",
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
    """Return the distinct hardware of the run's starts, which an audit of seconds compares."""
    starts = [{key: start[key] for key in HARDWARE if key in start} for start in record.environment]
    return [start for n, start in enumerate(starts) if start not in starts[:n]]


def _aligned(record: Record) -> list[str]:
    """Return the metrics whose network the run's method aligned with."""
    starts = [start.get("evaluation", {}).get("aligned", ()) for start in record.environment]
    return sorted({name for names in starts for name in names})


def _log_params(client: Any, run: str, record: Record) -> None:
    """Log the flattened spec as params, and spec.toml as an artifact; a tag lists values too long for a
    param."""
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

    timed = [event for event in record.events if "seconds" in event]
    steps = [event["step"] for event in timed]

    def when(event: Mapping[str, Any]) -> int:
        """Return the time of an event, that of the last earlier one if it has no seconds."""
        place = bisect_right(steps, event["step"])
        return _time(record, event if "seconds" in event or not place else timed[place - 1])

    metrics = [
        Metric(name, value, when(event), event["step"])
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
    """Return the run id of a study; a new run gets the start time of its first record."""
    run = _find(client, experiment, "flowrace.study", study)
    if run is None:
        start = min(map(_started, records), default=0)
        run = client.create_run(experiment, start, {"flowrace.study": study}, study)
    return run.info.run_id


def _close_parent(client: Any, parent: str, records: Sequence[Record], *, broken: bool) -> None:
    done = not broken and all(record.status == "done" for record in records)
    status = "FINISHED" if done else "FAILED"
    end = max((_end(record, durable(record)) for record in records), default=0)
    _set_status(client, client.get_run(parent), status, end)


def _experiment(client: Any, name: str, uri: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    try:
        return client.create_experiment(name, artifact_location=artifact_folder(uri, name))
    except MlflowException:
        # Another machine created it first, or a retried request did, after the server failed.
        if found := client.get_experiment_by_name(name):
            return found.experiment_id
        raise


def _find(client: Any, experiment: str, tag: str, value: str) -> Any:
    """Return the run with this tag, or None. A retried request can create a duplicate; the copy with more
    data wins."""
    quote = '"' if "'" in value else "'"
    found = client.search_runs([experiment], f"tags.`{tag}` = {quote}{value}{quote}")
    kept, *duplicates = sorted(found, key=lambda run: (-_mirrored(run), run.info.run_id)) or [None]
    for duplicate in duplicates:
        client.delete_run(duplicate.info.run_id)
    return kept


def _mirrored(run: Any) -> int:
    """Return the number of events that were sent to a run."""
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
    """Return the milliseconds since 1970 at the run's first start, or 1 if they are not recorded."""
    # Not 0, which MLflow treats as the current time.
    return int(next((start["started"] for start in record.environment if "started" in start), 1))


def _time(record: Record, event: Mapping[str, Any]) -> int:
    return _started(record) + round(1000 * sum(event.get("seconds", {}).values()))


def _end(record: Record, events: Sequence[Mapping[str, Any]]) -> int:
    return max((_time(record, event) for event in events), default=_started(record))


def _digest(events: Sequence[Mapping[str, Any]]) -> str:
    """Return 16 hex digits over events without their seconds, which are equal for equal runs."""
    kept = [{key: value for key, value in event.items() if key != "seconds"} for event in events]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
