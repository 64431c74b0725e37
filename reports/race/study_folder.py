"""The study folders of one report, read together; harness/records/study_folder.py reads each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.files.parse import parse_json
from harness.records.record import Record
from harness.records.study_folder import PlanFile, StudyFolder, StudySettings


def read_study(directories: Sequence[Path]) -> StudySettings:
    """Return the settings of the first `study.toml` in these folders; all None without one.

    Raises `UserError` if that file is invalid.
    """
    studies = (folder for folder in map(StudyFolder, directories) if folder.study_file.is_file())
    return next((folder.settings for folder in studies), StudySettings())


def study_tables(directories: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every `study.toml` in these folders with its content."""
    for folder in map(StudyFolder, directories):
        if folder.study_file.is_file():
            yield folder.study_file, folder.study


def read_plan(directories: Sequence[Path]) -> PlanFile:
    """Return the plans of these folders as one plan, in order; empty if nothing was planned."""
    plans = [folder.plan for folder in map(StudyFolder, directories) if folder.plan]
    return PlanFile(
        runs=tuple(run for plan in plans for run in plan.runs),
        exclusions=tuple(exclusion for plan in plans for exclusion in plan.exclusions),
    )


def split_by_plan(
    records: Sequence[Record], directories: Sequence[Path]
) -> tuple[list[Record], list[Record]]:
    """Return the records of planned runs, and those missing from the plan of their folder.

    In a folder without a plan every run counts as planned.
    """
    plans = {folder.path: folder.plan.ids for folder in map(StudyFolder, directories) if folder.plan}
    planned, unplanned = [], []
    for record in records:
        own = [ids for path, ids in plans.items() if ids and record.path.is_relative_to(path)]
        (planned if not own or any(record.id in ids for ids in own) else unplanned).append(record)
    return planned, unplanned


def read_probe_tables(folders: Iterable[Path], name: str) -> Iterator[tuple[Path, Any]]:
    """Yield the file and the content of every table of `flowrace probe` with this name.

    The content is None if the file is not JSON.
    """
    for file in (folder / name for folder in sorted(folders)):
        if file.is_file():
            try:
                yield file, parse_json(file.read_text())
            except ValueError:
                yield file, None
