"""The status of a study on disk, from its plan and its records alone, without torch or specs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.records.evaluations import read_evaluations
from harness.records.integrity import misfits
from harness.records.record import Record, failure_reason
from harness.records.study_folder import PlanEntry, StudyFolder
from sweeps.plan.run_state import TO_EXTEND, read_step
from sweeps.plan.study import run_label

INCOMPLETE = ("failed", "stopped")
"""Statuses of runs that began, did not finish, and have no process: an error ended them, or a signal."""
ORDER = ("done", TO_EXTEND, "running", "stopped", "failed", "missing", "excluded")


def read_status(directory: Path) -> dict[str, Any]:
    """Return the planned runs of a study's folder, each with its status and, if incomplete, the reason.

    Raises `UserError` for a folder that no sweep has written.
    """
    folder = StudyFolder(directory)
    plan = folder.required_plan
    runs = [_run(directory, entry) for entry in plan.runs]
    excluded = [
        {"id": None, "label": run_label(one.values), "status": "excluded", "step": 0, "reason": one.reason}
        for one in plan.exclusions
    ]
    counts = Counter(run["status"] for run in runs + excluded)
    return {
        "study": folder.name,
        "directory": str(directory),
        "counts": {status: counts[status] for status in ORDER if counts[status]},
        "runs": runs + excluded,
    }


def difference(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the labels of the runs (`id` and `label` each) that two plans share, and of those that only one
    has."""
    first, second = ({run["id"]: run["label"] for run in runs} for runs in (a, b))
    return {
        "both": [text for run, text in first.items() if run in second],
        "only_a": [text for run, text in first.items() if run not in second],
        "only_b": [text for run, text in second.items() if run not in first],
    }


def _is_shorter(record: Record, entry: PlanEntry, step: int) -> bool:
    """Return whether the study asks for more steps than a finished run, whose last logged step is known."""
    asked = entry.steps or 0
    # Most of the time of a status of thousands of runs would be that of reading their specs.
    return step < asked and asked > (record.steps or 0)


def _run(directory: Path, entry: PlanEntry) -> dict[str, Any]:
    record = Record(directory / entry.id)
    status = record.status
    early = record.early_end if status == "done" else None
    step = read_step(record.path)
    if status == "done" and (_is_shorter(record, entry, step) or (early and not entry.ends_early)):
        status = TO_EXTEND
    found = {"id": entry.id, "label": run_label(entry.values), "status": status, "step": step}
    if early is not None:
        found["ended"] = str(early)
    if later := read_evaluations(record.path):
        found["later_evaluations"] = len(later)
    if altered := misfits(record):
        found["misfits"] = list(altered)
    if status in INCOMPLETE:
        found["reason"] = failure_reason(record)
    return found
