"""The files of a study's folder: `study.toml` (what was asked for), `plan.json` (the planned runs), logs
and probe tables.

This is the only module of reports that reads them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files.files import read_toml
from harness.records.record import Record

STUDY, PLAN, LOGS = "study.toml", "plan.json", "logs"
TAIL_BYTES = 16_384
"""The part of a log in which its last line is searched for."""


@dataclass(frozen=True)
class StudySettings:
    """The parts of `study.toml` that a report uses; None if not given."""

    name: str | None = None
    baseline: str | None = None
    metric: str | None = None
    target: float | None = None

    def target_of(self, metric: str) -> float | None:
        """Return the target if it is a value of this metric."""
        return self.target if self.metric in (None, metric) else None


@dataclass(frozen=True)
class Planned:
    """A run of `plan.json`: its id and what distinguishes it, for example `{"method.name": "repa", "seed":
    0}`."""

    id: str
    cell: Mapping[str, Any]


@dataclass(frozen=True)
class Excluded:
    """A combination that `plan.json` leaves out, and why."""

    cell: Mapping[str, Any]
    reason: str


def read_study(directories: Sequence[Path]) -> StudySettings:
    """Return the first `study.toml` in these folders, empty without one. Raises `UserError` for an invalid
    one."""
    return next((_study(file, table) for file, table in study_tables(directories)), StudySettings())


def study_tables(directories: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every `study.toml` of these folders with its content."""
    for file in (directory / STUDY for directory in directories):
        if file.is_file():
            yield file, read_toml(file)


def read_plan(directories: Sequence[Path]) -> list[Planned]:
    """Return the planned runs of these folders, in order; empty if nothing was planned."""
    return [run for directory in directories for run in _plan(directory / PLAN)[0]]


def by_plan(records: Sequence[Record], directories: Sequence[Path]) -> tuple[list[Record], list[Record]]:
    """Return the records that count, and those missing from their folder's plan; without a plan all runs
    count."""
    plans = {folder: {run.id for run in read_plan([folder])} for folder in directories}
    kept, left = [], []
    for record in records:
        own = [ids for folder, ids in plans.items() if ids and record.path.is_relative_to(folder)]
        (kept if not own or any(record.id in ids for ids in own) else left).append(record)
    return kept, left


def read_excluded(directories: Sequence[Path]) -> list[Excluded]:
    """Return the combinations that these folders' plans leave out, in order."""
    return [left for directory in directories for left in _plan(directory / PLAN)[1]]


def read_probe_tables(folders: Iterable[Path], name: str) -> Iterator[tuple[Path, Any]]:
    """Yield the JSON tables of this name that `flowrace probe` left in these folders; None for one that is
    not JSON."""
    for file in (folder / name for folder in sorted(folders)):
        if file.is_file():
            try:
                yield file, json.loads(file.read_text())
            except ValueError:
                yield file, None


def failure_reason(record: Record) -> str:
    """Return why a run failed or stopped, in one line: the recorded reason, else the last line of its log
    in `logs/`."""
    if record.status not in ("failed", "stopped"):
        return ""
    if record.failure and "reason" in record.failure:
        return str(record.failure["reason"])
    lines = _tail(record.path.parent / LOGS / f"{record.path.name}.log").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else ""


def _tail(file: Path) -> str:
    try:
        with open(file, "rb") as content:
            content.seek(max(0, content.seek(0, os.SEEK_END) - TAIL_BYTES))
            return content.read().decode(errors="replace")
    # A run that was started by hand has no log.
    except OSError:
        return ""


def _study(file: Path, table: Mapping[str, Any]) -> StudySettings:
    target = table.get("target", {})
    if not isinstance(target, Mapping):
        raise UserError(
            f'{file}: target must be a table, for example [target] metric = "fd:local", value = 12.0'
        )
    value = target.get("value")
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf
    ):
        raise UserError(f"{file}: target.value = {value!r}: expected a number above 0")
    words = {"name": table.get("name"), "baseline": table.get("baseline"), "metric": target.get("metric")}
    for key, word in words.items():
        if word is not None and not isinstance(word, str):
            raise UserError(f"{file}: {key} = {word!r}: expected text")
    return StudySettings(**words, target=None if value is None else float(value))


def _plan(file: Path) -> tuple[list[Planned], list[Excluded]]:
    if not file.is_file():
        return [], []
    try:
        table = json.loads(file.read_text())
        runs = [Planned(str(run["id"]), dict(run["cell"])) for run in table["runs"]]
        left_out = table.get("excluded") or []
        return runs, [Excluded(dict(left["cell"]), str(left["reason"])) for left in left_out]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{file} is not a plan: expected {{"runs": [{{"id": ..., "cell": {{...}}}}]}}'
        ) from error
