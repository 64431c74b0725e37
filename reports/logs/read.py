"""Logs of any known kind: which reader a file or a folder needs, and the curves of several together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.errors import UserError
from reports.logs.curves import LogCurve, Understood, merged, without_superseded
from reports.logs.json_logs import HISTORY, SUMMARY, read_json, read_json_lines
from reports.logs.log_map import LogMap
from reports.logs.tables import Wanted, read_csv
from reports.logs.tensorboard import event_folders, read_events
from reports.logs.text import read_text_log

IN_FOLDERS = (HISTORY, SUMMARY, "metrics.csv")
"""Files by which a folder of logs is known, besides event files."""
KINDS = (
    "a CSV (method, seed, step, metric, value, or an export of W&B, TensorBoard or Lightning), event files, "
    "trainer_state.json, wandb-summary.json, JSON lines, or the output of ADM's evaluator"
)


def is_log_folder(folder: Path) -> bool:
    """Return whether a folder holds logs of other tools, and no run directory."""
    if not folder.is_dir() or any(
        next(folder.glob(f"{depth}spec.toml"), None) for depth in ("", "*/", "*/*/")
    ):
        return False
    return bool(event_folders(folder) or _known_files(folder))


def read_logs_of(
    sources: Sequence[Path],
    rules: LogMap | None = None,
    wanted: Wanted = lambda method, metric: True,
) -> Understood:
    """Return the curves of files and folders of logs, sorted by method, seed and metric.

    Values that a resumed run logged again count once, with a note. Raises `UserError` for a source of no
    known kind, for names that are not clear, and if two sources hold the same metric of the same run.
    """
    rules = rules or LogMap()
    parts = [_read(path, rules, wanted) for source in sources for path in _expanded(source)]
    notes = [note for part in parts for note in part.notes]
    curves = []
    for curve in _joined([curve for part in parts for curve in part.curves]):
        clean, note = without_superseded(curve)
        curves.append(clean)
        notes += [note] if note else []
    curves.sort(key=lambda curve: (curve.method, curve.seed, curve.metric))
    return Understood(tuple(curves), tuple(dict.fromkeys(notes)))


def _expanded(source: Path) -> list[Path]:
    """Return the files and the folders of event files of a source."""
    if not source.is_dir():
        return [source]
    found = [*event_folders(source), *_known_files(source)]
    if not found:
        raise UserError(f"{source}: no log of a known kind in this folder (expected {KINDS})")
    return found


def _known_files(folder: Path) -> list[Path]:
    """Return the log files of a folder; of the checkpoints of one trainer, the last state counts."""
    found = [file for name in IN_FOLDERS for file in sorted(folder.rglob(name))]
    states: dict[Path, Path] = {}
    others = []
    for file in found:
        if file.name != HISTORY:
            others.append(file)
            continue
        run = file.parent.parent if file.parent.name.startswith("checkpoint-") else file.parent
        states[run] = max(states.get(run, file), file, key=_checkpoint)
    return [*states.values(), *others]


def _checkpoint(file: Path) -> float:
    """Return the step of a checkpoint's folder; infinity for the state of the finished run."""
    number = file.parent.name.removeprefix("checkpoint-")
    return int(number) if file.parent.name.startswith("checkpoint-") and number.isdecimal() else float("inf")


def _read(path: Path, rules: LogMap, wanted: Wanted) -> Understood:
    if path.is_dir() or "tfevents" in path.name:
        return read_events(path, rules)
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    ending = path.suffix.lower()
    if rules.line is not None and ending not in (".csv", ".json", ".jsonl"):
        return read_text_log(path, rules)
    if ending == ".json":
        return read_json(path, rules)
    if ending in (".jsonl", ".ndjson"):
        return read_json_lines(path, rules)
    if ending in (".txt", ".log", ".out"):
        return read_text_log(path, rules)
    return read_csv(path, rules, wanted)


def _joined(curves: Sequence[LogCurve]) -> list[LogCurve]:
    """Return curves in which evaluations with a file each are joined; others must be of one source each."""
    single = [curve for curve in curves if len(curve.points) == 1]
    joined = {(c.method, c.seed, c.metric): c for c in merged(single)}
    found = list(joined.values())
    for curve in (curve for curve in curves if len(curve.points) > 1):
        key = curve.method, curve.seed, curve.metric
        if key in joined:
            raise UserError(
                f"two runs of {curve.method} with seed {curve.seed} have {curve.metric}: "
                f"{joined[key].source} and {curve.source}; "
                "only one can "
                "count, so remove the other or give the runs other names"
            )
        joined[key] = curve
        found.append(curve)
    return found
