"""What a sweep leaves beside its runs: `study.toml` (what was asked) and `plan.json` (which runs were meant to be)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files.files import read_toml
from harness.records.record import Record

TAIL_BYTES = 16_384
"""Of a log, in which its last line is looked for."""


@dataclass(frozen=True)
class StudySettings:
    """The parts of `study.toml` that a report uses; None where they are not given."""

    name: str | None = None
    baseline: str | None = None
    metric: str | None = None
    target: float | None = None

    def target_of(self, metric: str) -> float | None:
        """The target, where it is one of this metric."""
        return self.target if self.metric in (None, metric) else None


@dataclass(frozen=True)
class Planned:
    """A run of `plan.json`: its id and what sets it apart, as `{"method.name": "repa", "seed": 0}`."""

    id: str
    cell: Mapping[str, Any]


@dataclass(frozen=True)
class Excluded:
    """A combination that `plan.json` leaves out, and why."""

    cell: Mapping[str, Any]
    reason: str


def read_study(directories: Sequence[Path]) -> StudySettings:
    """The first `study.toml` in these folders; empty when there is none. Raises `UserError` for one that is broken."""
    for file in (directory / "study.toml" for directory in directories):
        if file.is_file():
            return _study(file, read_toml(file))
    return StudySettings()


def read_plan(directories: Sequence[Path]) -> list[Planned]:
    """The planned runs of these folders, in order; empty when nothing was planned."""
    return [run for directory in directories for run in _plan(directory / "plan.json")[0]]


def by_plan(records: Sequence[Record], directories: Sequence[Path]) -> tuple[list[Record], list[Record]]:
    """The records that count, and those that the plan of their own folder does not have; a folder without a plan has room for
    all of its runs."""
    plans = {folder: {run.id for run in read_plan([folder])} for folder in directories}
    kept, left = [], []
    for record in records:
        own = [ids for folder, ids in plans.items() if ids and record.path.is_relative_to(folder)]
        (kept if not own or any(record.id in ids for ids in own) else left).append(record)
    return kept, left


def read_excluded(directories: Sequence[Path]) -> list[Excluded]:
    """The combinations that these folders' plans leave out, in order."""
    return [left for directory in directories for left in _plan(directory / "plan.json")[1]]


def failure_reason(record: Record) -> str:
    """Why a run is failed or stopped, in one line: what it recorded, else the last line of its log in the study's `logs/`."""
    if record.status not in ("failed", "stopped"):
        return ""
    if record.failure and "reason" in record.failure:
        return str(record.failure["reason"])
    lines = _tail(record.path.parent / "logs" / f"{record.path.name}.log").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else ""


def _tail(file: Path) -> str:
    try:
        with open(file, "rb") as content:
            content.seek(max(0, content.seek(0, os.SEEK_END) - TAIL_BYTES))
            return content.read().decode(errors="replace")
    except OSError:  # a run that was started by hand has no log
        return ""


def _study(file: Path, table: Mapping[str, Any]) -> StudySettings:
    target = table.get("target", {})
    if not isinstance(target, Mapping):
        raise UserError(f'{file}: target must be a table, as in [target] metric = "fd:local", value = 12.0')
    value = target.get("value")
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf
    ):
        raise UserError(f"{file}: target.value = {value!r}: expected a number above 0")
    words = {"name": table.get("name"), "baseline": table.get("baseline"), "metric": target.get("metric")}
    for key, word in words.items():
        if word is not None and not isinstance(word, str):
            raise UserError(f"{file}: {key} = {word!r}: expected a text")
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
