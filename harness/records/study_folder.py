"""The folder of a study, as a store sees it: what it is called, and whether all of its runs are meant."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from harness.errors import UserError
from harness.files.files import read_toml
from harness.records.record import Record

STUDY, PLAN = "study.toml", "plan.json"


def study_of(folder: Path) -> str:
    """The name of the study that a folder holds; of runs without one, that of the folder."""
    file = folder / STUDY
    name = folder.resolve().name
    return str(read_toml(file).get("name", name)) if file.is_file() else name


def is_whole(folder: Path, records: Iterable[Record]) -> bool:
    """Whether every planned run of a folder is among the records; of runs without a plan, any are."""
    try:
        planned = json.loads((folder / PLAN).read_text())["runs"]
        return {run["id"] for run in planned} <= {record.id for record in records}
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / PLAN} is not a plan; run the study's sweep again, which writes it anew"
        ) from error
