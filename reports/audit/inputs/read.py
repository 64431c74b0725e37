"""The runs of an audit: run directories, logs (csv_curves.py) and MLflow stores (mlflow_runs.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.records.evaluations import first_scale
from harness.records.in_threads import in_threads
from harness.records.integrity import misfits
from harness.records.measured import metric_names
from harness.records.mlflow_copy import is_file_store
from harness.records.record import Record, find_records
from reports.audit.inputs.claim import Claim
from reports.audit.inputs.csv_curves import read_log_arms
from reports.audit.inputs.mlflow_runs import read_tracked, split_experiment
from reports.audit.inputs.run_log import (
    FREE,
    AuditArms,
    AuditRun,
    AuditRuns,
    Progress,
    ReadRun,
    RunTimes,
    by_seed,
    collect_arms,
)
from reports.logs.log_map import LogMap
from reports.logs.read import is_log_folder
from reports.race.arms import RaceArm, arms_of, find_arm, flatten
from reports.race.cells import natural_baseline
from reports.race.comparability import machines_of
from reports.race.conditions import select
from reports.race.protocols import protocols_of
from reports.race.study_folder import read_plan, split_by_plan
from reports.stats.curves import costs_of, curve_of

SCHEMES = ("sqlite://", "http://", "https://")


def read_logs(
    sources: Sequence[str],
    claim: Claim,
    progress: Progress = iter,
    protocol: str | None = None,
    rules: LogMap | None = None,
) -> AuditRuns:
    """Return the runs of a claim's two arms; see `read_arms`."""
    arms = read_arms(sources, (claim.baseline, claim.candidate), claim.metric, progress, protocol, rules)
    return AuditRuns(arms.runs[claim.baseline], arms.runs[claim.candidate], *arms[1:])


def read_arms(
    sources: Sequence[str],
    names: Sequence[str],
    metric: str,
    progress: Progress = iter,
    protocol: str | None = None,
    rules: LogMap | None = None,
) -> AuditArms:
    """Return the finished and failed runs of these methods.

    Sources are folders of run directories, CSV files, logs of other tools and MLflow stores. `protocol`
    chooses the conditions of evaluations in run directories, and `rules` how logs are read. Raises
    `UserError` for a source that cannot be read, a method or a metric that it does not contain, and a seed
    that occurs twice.
    """
    stores = [source for source in sources if is_store(source)]
    logs = [source for source in sources if source not in stores and is_log(Path(source))]
    folders = [Path(source) for source in sources if source not in stores and source not in logs]
    for folder in folders:
        if not folder.exists():
            raise UserError(
                f"no such file or folder: {folder} (expected run directories, a CSV or a log, "
                "or an MLflow store: sqlite:///mlflow.db)"
            )
    found = [read_log_arms([Path(log) for log in logs], names, metric, rules)] if logs else []
    found += [read_tracked(store, names, metric, progress) for store in stores]
    found += [read_records(folders, names, metric, progress, protocol)] if folders else []
    runs = {name: by_seed(log for part in found for log in part.runs[name].values()) for name in names}
    notes = tuple(note for part in found for note in part.notes)
    unseen = tuple(note for part in found for note in part.unseen)
    valued = {(name, seed) for name, own in runs.items() for seed in own}
    lost, missing = (
        frozenset[tuple[str, int]]().union(*(getattr(part, kind) for part in found)) - valued
        for kind in ("lost", "missing")
    )
    return AuditArms(runs, notes, unseen, lost, missing - lost)


def is_store(source: str) -> bool:
    """Return whether a source is an MLflow store: a URI, or a folder of experiments."""
    return source.startswith(SCHEMES) or is_file_store(Path(split_experiment(source)[0]))


def is_log(path: Path) -> bool:
    """Return whether a source is a CSV or a log of another tool: a file, or a folder of such files."""
    return path.is_file() or is_log_folder(path)


def natural_method(sources: Sequence[str]) -> str:
    """Return the baseline of sources whose study declares none: `flow`, or the only arm of the folders.

    Raises `UserError` if the folders hold several arms and none is of flow.
    """
    folders = [Path(source) for source in sources if Path(source).is_dir()]
    if len(folders) < len(sources) or any(is_store(source) or is_log(Path(source)) for source in sources):
        return "flow"
    arms = arms_of(split_by_plan(find_records(*folders), folders)[0])
    return natural_baseline([arm.label for arm in arms], [arm.method for arm in arms], "--method")


def read_records(
    folders: Sequence[Path],
    names: Sequence[str],
    metric: str,
    progress: Progress = iter,
    protocol: str | None = None,
) -> AuditArms:
    """Read run directories. In a folder with a plan, only the planned runs count."""
    records, unplanned = split_by_plan(find_records(*folders), folders)
    records = records if protocol is None else select(records, protocol)
    if not records:
        raise UserError(f"no runs in {', '.join(map(str, folders))}: a run is a folder with a spec.toml")
    arms = arms_of(records)
    chosen = {name: find_arm(arms, name, "method") for name in names}
    if len({id(arm) for arm in chosen.values()}) < len(chosen):
        raise UserError(f"{' and '.join(names)} are the same arm")
    ids = {record.id for record in records}
    missing = [run for run in read_plan(folders).runs if run.id not in ids]
    notes = [f"{len(missing)} planned runs are missing."] if missing else []
    notes += (
        [f"Excluded because they are not in the plan: {', '.join(run.id for run in unplanned)}."]
        if unplanned
        else []
    )
    runs = [(name, arm, *run, metric) for name, arm in chosen.items() for run in arm.runs.items()]
    read = in_threads(lambda run: _read_run(*run), runs)
    found_runs = [one for _, one in zip(progress(runs), read, strict=True)]
    if not any(one.log for one in found_runs):
        known = {name for arm in chosen.values() for run in arm.runs.values() for name in _metrics(run)}
        raise UserError(
            f"no finished run of {' or '.join(names)} was evaluated by '{metric}' (evaluated: "
            f"{', '.join(sorted(known)) or 'nothing'})"
        )
    planned = [
        (name, int(one.values.get("seed", 0)))
        for one in missing
        for name, arm in chosen.items()
        if arm.holds(one.values)
    ]
    return collect_arms(found_runs, names, notes, planned)


def _read_run(name: str, arm: RaceArm, seed: int, record: Record, metric: str) -> ReadRun:
    """Read one run. Its events are not kept, because hundreds of runs would fill the memory."""
    failed, who = record.status == "failed", f"{arm.label} seed {seed}"
    if not failed and record.status != "done":
        why = f"{who} is {record.status}, so it is excluded from all numbers ({record.id})."
        return ReadRun(name, seed, False, None, why)
    run = Record(record.path, record.conditions)
    run.load_log()
    curve = curve_of(run, metric)
    if curve is None:
        why = "failed before its first evaluation" if failed else "was never evaluated"
        return ReadRun(name, seed, failed, None, f"{who} {why} by {metric} ({record.id}).")
    began, ended = times_of(run)
    starts = [start.get("evaluation", {}) for start in run.environment]
    log = AuditRun(
        arm.label,
        seed,
        str(record.path),
        curve,
        costs_of(run),
        _protocols(run, metric),
        tuple(machines_of(run)),
        {path: value for path, value in arm.fields.items() if not path.startswith(("method.", "eval."))},
        began,
        ended,
        any(metric in start.get("aligned", ()) for start in starts),
        failed,
        early=run.early_end,
        misfits=misfits(run),
    )
    note = f"{who} failed: censored after its last evaluation ({record.id})." if failed else ""
    return ReadRun(name, seed, failed, log, note)


def _protocols(record: Record, metric: str) -> dict[str, Mapping[str, Any]]:
    """Return hash -> fields of the evaluations with the metric.

    The fields come from the spec if the record has only the hash.
    """
    spec = {key: value for key, value in flatten(record.spec.get("eval", {})).items() if key not in FREE}
    if "guidance" in spec:
        spec["guidance"] = first_scale(spec["guidance"])
    recorded = protocols_of(record, metric)
    return {
        one: spec if fields == {"hash": one} else flatten(fields) for one, fields in sorted(recorded.items())
    }


def times_of(record: Record) -> RunTimes:
    """Return when a run began, and the earliest time at which it can have ended.

    The latter follows from the recorded seconds.
    """
    starts = [start["started"] for start in record.environment if "started" in start]
    if not starts:
        return RunTimes(None, None)
    booked = sum(record.log.last.get("seconds", {}).values()) if record.log.last else 0.0
    return RunTimes(starts[0], max(starts[-1], starts[0] + 1000 * booked))


def _metrics(record: Record) -> list[str]:
    return sorted(metric_names(Record(record.path, record.conditions)))
