"""Where a study on disk stands, from its plan and its records alone: 500 runs in a second or two, no torch, no specs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files.files import read_toml
from harness.records.record import Record
from sweeps.plan.plan import PLAN, STUDY
from sweeps.plan.run_state import log_of, pace, reason
from sweeps.plan.study import label
from sweeps.plan.study_folder import SEARCH

BROKEN = ("failed", "stopped")
"""Begun, not finished, and nobody is at work: by an error of its own, or killed."""
ORDER = ("done", "running", "stopped", "failed", "missing", "excluded")


def status_of(directory: Path) -> dict[str, Any]:
    """The planned runs of a study's folder, each with its status and, where it broke off, the last line that it left.

    Raises `UserError` for a folder that no sweep has written.
    """
    planned = _read_plan(directory)
    runs = [_run(directory, run["id"], run["cell"]) for run in planned["runs"]]
    left_out = [
        {"id": None, "label": label(run["cell"]), "status": "excluded", "step": 0, "reason": run["reason"]}
        for run in planned.get("excluded", ())
    ]
    counts = Counter(run["status"] for run in runs + left_out)
    return {
        "study": read_toml(directory / STUDY).get("name", directory.name),
        "directory": str(directory),
        "counts": {status: counts[status] for status in ORDER if counts[status]},
        "runs": runs + left_out,
    }


def difference(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Runs of two plans (`id` and `label` each) by where they are: in both, or in one alone."""
    first, second = ({run["id"]: run["label"] for run in runs} for runs in (a, b))
    return {
        "both": [text for run, text in first.items() if run in second],
        "only_a": [text for run, text in first.items() if run not in second],
        "only_b": [text for run, text in second.items() if run not in first],
    }


def _run(directory: Path, run: str, cell: Mapping[str, Any]) -> dict[str, Any]:
    record = Record(directory / run)
    status = record.status
    known = {"id": run, "label": label(cell), "status": status, "step": pace(record.path).step}
    if status in BROKEN:
        known["reason"] = reason(record, log_of(directory, run))
    return known


def _read_plan(directory: Path) -> dict[str, Any]:
    file = directory / PLAN
    try:
        planned = json.loads(file.read_text())
        if all({"id", "cell"} <= run.keys() for run in planned["runs"]):
            return planned
    except OSError as error:
        if (directory / SEARCH).exists():
            again = f"flowrace tune {directory / SEARCH} --out {directory}"
            raise UserError(
                f"{directory} holds a search of settings, not a study; this goes on with it and prints it: {again}"
            ) from error
        raise UserError(
            f"{directory} holds no study: {PLAN} is not there; give the --out of a sweep"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{file} is not a plan; run the study's sweep again, which writes it anew")
