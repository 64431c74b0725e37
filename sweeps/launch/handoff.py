"""What a coordinator and the nodes of an engine tell each other: small files in the study's folder, `launch/`.

    3.json        the jobs of the third submission in order, their environment and working folder; written before the engine
                  hears of them, so that a coordinator that dies at any instant leaves no job that the next one cannot name
    NAME.begun    a node has begun the job
    NAME.ended    its exit code, when it is not to be run again
    NAME.kills    a byte for each time that it was killed by a signal
    NAME.lock     held by the node's process and by the run itself: two attempts of one job never overlap

Any shared file system will do; nothing is sent by pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.files.files import write_atomic
from sweeps.launch.base import Job


@dataclass(frozen=True)
class Posted:
    """A job as a node reads it."""

    job: Job
    env: Mapping[str, str]
    folder: Path


@dataclass(frozen=True)
class Board:
    """The launch folder of a study."""

    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A name for this study that no other folder has, for an engine's queue."""
        return f"flowrace-{hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:12]}"

    def post(self, jobs: Sequence[Job]) -> int:
        """Write the jobs of one submission, forget how they ended before, and return its number."""
        for job in jobs:
            for kind in ("begun", "ended", "kills"):
                self._file(job.name, kind).unlink(missing_ok=True)
        number = max(self.posted(), default=0) + 1
        rows = [{**asdict(job), "log": str(job.log)} for job in jobs]
        table = {"env": dict(self.env), "folder": os.getcwd(), "jobs": rows}
        write_atomic(self.table(number), json.dumps(table, indent=1).encode())
        return number

    def posted(self) -> dict[int, list[str]]:
        """The names of every submission so far, by its number, oldest first."""
        numbers = sorted(int(file.stem) for file in self.folder.glob("*.json") if file.stem.isdecimal())
        return {n: [row["name"] for row in json.loads(self.table(n).read_text())["jobs"]] for n in numbers}

    def table(self, number: int) -> Path:
        return self.folder / f"{number}.json"

    def seen(self) -> tuple[set[str], set[str]]:
        """The names of the jobs that have begun and of those that have ended, by one look into the folder."""
        found = [name.rpartition(".") for name in os.listdir(self.folder)]
        begun, ended = ({name for name, _, kind in found if kind == wanted} for wanted in ("begun", "ended"))
        return begun, ended

    def begin(self, name: str) -> None:
        self._file(name, "begun").touch()

    def end(self, name: str, code: int) -> None:
        write_atomic(self._file(name, "ended"), str(code).encode())

    def code(self, name: str) -> int:
        """The exit code of a job that has ended."""
        return int(self._file(name, "ended").read_text())

    def kill(self, name: str) -> int:
        """Note that a job was killed; how often it was by now."""
        with open(self._file(name, "kills"), "ab") as file:
            file.write(b"x")
            return file.tell()

    def lock(self, name: str) -> Path:
        return self._file(name, "lock")

    def _file(self, name: str, kind: str) -> Path:
        return self.folder / f"{name}.{kind}"


def read_job(table: Path, index: int) -> Posted:
    """The job at a place of a submission."""
    posted = json.loads(table.read_text())
    row = posted["jobs"][index]
    return Posted(
        Job(row["name"], tuple(row["command"]), Path(row["log"])), posted["env"], Path(posted["folder"])
    )


def add_line(log: Path, line: str) -> None:
    """Add a line to a job's log, where the reason of a failure is looked for."""
    with open(log, "a") as file:
        file.write(f"{line}\n")
