"""The writers of a study's folder, and its lock; harness/records/study_folder.py reads the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

# Any: JSON.
from typing import Any

from harness.errors import UserError
from harness.files.files import take_lock, write_atomic, writing
from harness.records.study_folder import LastLook, StudyFolder
from sweeps.plan.plan import StudyPlan
from sweeps.plan.study import Study


@contextmanager
def study_lock(directory: Path) -> Iterator[None]:
    """Hold a study's folder; raise `UserError` if another process holds it, and name that process."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = take_lock(directory / "sweep.lock", str(directory))
    except OSError as error:
        raise UserError(f"cannot write the folder {directory}: {error.strerror}") from error
    with lock:
        yield


def write_plan(study: Study, plan: StudyPlan, directory: Path, last_look: LastLook | None = None) -> None:
    """Write `study.toml` and `plan.json`, for resuming and for the report.

    `last_look` is the last look of a race; by default the one that the plan has. Raises `UserError` if the
    folder holds another study or cannot be written.
    """
    folder = StudyFolder(directory)
    if folder.study and folder.study.get("name") != study.name:
        raise UserError(
            f"{directory} holds the study '{folder.study.get('name')}', not '{study.name}'; "
            "choose another --out"
        )
    runs = [
        {"id": run.id, "cell": run.values, "steps": run.spec.train.steps}
        | ({"ends_early": str(run.end)} if run.end else {})
        for run in plan.runs
    ]
    table: dict[str, Any] = {"runs": runs}
    table["excluded"] = [{"cell": one.values, "reason": one.reason} for one in plan.excluded]
    last_look = last_look or (folder.plan.last_look if folder.plan else None)
    if last_look is not None:
        table["looks"] = asdict(last_look)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(folder.study_file, study.to_toml().encode())
        write_atomic(folder.plan_file, json.dumps(table, indent=1).encode())
    except OSError as error:
        raise UserError(f"cannot write the folder {directory}: {error.strerror}") from error


def write_search(study: Study, directory: Path) -> None:
    """Write `tune.toml`, the study whose settings are searched.

    Raises `UserError` if the folder holds another search or the runs of a sweep, or cannot be written.
    """
    folder = StudyFolder(directory)
    if folder.search and folder.search.get("name") != study.name:
        raise UserError(
            f"{directory} holds the search '{folder.search.get('name')}', not '{study.name}'; "
            "choose another --out"
        )
    if folder.plan_file.exists():
        raise UserError(
            f"{directory} holds the runs of a sweep, which must not mix with tuning runs; "
            "choose another --out"
        )
    with writing(folder.search_file):
        write_atomic(folder.search_file, study.to_toml().encode())
