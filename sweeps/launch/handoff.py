"""Handoff files between a coordinator and the nodes of an engine, in `launch/` of the study's folder.

    3.json        the jobs of the third submission in order, their environment and working directory. It is
                  written before the engine gets them, so that the next coordinator can name every job of
                  one that died
    NAME.begun    a node has started the job
    NAME.ended    its exit code, once it is not to be run again
    NAME.kills    one byte for each time that a signal killed it
    NAME.lock     held by the node's process and by the run itself: two attempts of one job never overlap

Any shared file system will do; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.errors import ERROR_PREFIX
from harness.files.files import write_atomic
from sweeps.launch.base import Job


@dataclass(frozen=True)
class SubmittedJob:
    """A job as a node reads it, with its environment and working directory."""

    job: Job
    env: Mapping[str, str]
    directory: Path


@dataclass(frozen=True)
class Handoff:
    """The launch folder of a study."""

    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A name for an engine's queue that is unique to this folder."""
        return f"flowrace-{hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:12]}"

    def write_submission(self, jobs: Sequence[Job]) -> int:
        """Write the jobs of one submission, delete the outcome of their earlier ones, and return its
        number."""
        for job in jobs:
            for kind in ("begun", "ended", "kills"):
                self._file(job.name, kind).unlink(missing_ok=True)
        number = max(self.submissions(), default=0) + 1
        rows = [{**asdict(job), "log": str(job.log)} for job in jobs]
        table = {"env": dict(self.env), "folder": os.getcwd(), "jobs": rows}
        write_atomic(self.table(number), json.dumps(table, indent=1).encode())
        return number

    def submissions(self) -> dict[int, list[str]]:
        """Return the job names of every submission by its number, oldest first."""
        numbers = sorted(int(file.stem) for file in self.folder.glob("*.json") if file.stem.isdecimal())
        return {n: [row["name"] for row in json.loads(self.table(n).read_text())["jobs"]] for n in numbers}

    def table(self, number: int) -> Path:
        """Return the file of a submission."""
        return self.folder / f"{number}.json"

    def outcomes(self) -> tuple[set[str], set[str]]:
        """Return the names of the jobs that have started and of those that have ended, from one listing of
        the folder."""
        found = [name.rpartition(".") for name in os.listdir(self.folder)]
        started, ended = (
            {name for name, _, kind in found if kind == wanted} for wanted in ("begun", "ended")
        )
        return started, ended

    def mark_started(self, name: str) -> None:
        self._file(name, "begun").touch()

    def mark_ended(self, name: str, code: int) -> None:
        write_atomic(self._file(name, "ended"), str(code).encode())

    def exit_code(self, name: str) -> int:
        """Return the exit code of a job that has ended."""
        return int(self._file(name, "ended").read_text())

    def count_kill(self, name: str) -> int:
        """Record that a signal killed a job; return how often that has happened."""
        with open(self._file(name, "kills"), "ab") as file:
            file.write(b"x")
            return file.tell()

    def lock(self, name: str) -> Path:
        """Return the lock file of a job."""
        return self._file(name, "lock")

    def _file(self, name: str, kind: str) -> Path:
        return self.folder / f"{name}.{kind}"


def read_job(table: Path, index: int) -> SubmittedJob:
    """Return the job at an index of a submission."""
    submission = json.loads(table.read_text())
    row = submission["jobs"][index]
    job = Job(row["name"], tuple(row["command"]), Path(row["log"]))
    return SubmittedJob(job, submission["env"], Path(submission["folder"]))


def append_error(log: Path, reason: str) -> None:
    """Append the reason why a job ended to its log, in the form that `failure_reason` looks for."""
    with open(log, "a") as file:
        file.write(f"{ERROR_PREFIX}{reason}\n")
