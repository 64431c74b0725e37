"""One pass over a study: whatever is not done is started, followed to its end, and told about."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.errors import UserError
from harness.files.files import write_atomic
from harness.records.record import Record
from sweeps.launch.base import Job, Launcher, Started
from sweeps.plan.plan import Cell
from sweeps.plan.run_state import log_of, reason


class Watcher(Protocol):
    """Told what happens; shows it."""

    def started(self, cell: Cell) -> None: ...
    def finished(self, cell: Cell, failure: str | None) -> None: ...
    def stopping(self) -> None: ...
    def tick(self) -> None: ...


@dataclass
class Race:
    """The runs of a study on their way; `on_done` is called with the record of each that is finished.

    `failures` holds the reason of each run that failed, by id.
    """

    cells: Sequence[Cell]
    directory: Path
    launcher: Launcher
    watcher: Watcher
    on_done: Callable[[Record], None]
    processes: int = 1
    """Of one run: more than one start under torchrun."""
    failures: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Start what is missing in the order of the plan; return when nothing is left to do, or after a signal.

        A run that is at work under another process is waited for, and started here if it stops short.
        """
        by_id = {cell.id: cell for cell in self.cells}
        elsewhere = [cell for cell in self.cells if self._goes_on_elsewhere(cell)]
        told = False
        while self.launcher.active or (elsewhere and self.launcher.stopped_by is None):
            for event in self.launcher.poll():
                if isinstance(event, Started):
                    self.watcher.started(by_id[event.name])
                else:
                    self._ended(by_id[event.name], event.code)
            elsewhere = [cell for cell in elsewhere if self._goes_on_elsewhere(cell, waited=True)]
            if self.launcher.stopped_by is not None and not told:
                self.watcher.stopping()
                told = True
            self.watcher.tick()

    def _goes_on_elsewhere(self, cell: Cell, *, waited: bool = False) -> bool:
        """Whether a process that is not ours is at this run; where nobody is and it is not done, it is queued here.

        What an earlier sweep left with the launcher's engine is ours.
        """
        status = self._record(cell).status
        if status == "running" and self.launcher.holds(cell.id):
            status = "queued"
        if status == "done" and waited:
            self._ended(cell, 0)
        elif status not in ("done", "running"):
            self._submit(cell)
        return status == "running"

    def _ended(self, cell: Cell, code: int) -> None:
        record = self._record(cell)
        if record.status == "done":
            self.watcher.finished(cell, None)
            self.on_done(record)
        elif self.launcher.stopped_by is None:
            self.failures[cell.id] = reason(record, log_of(self.directory, cell.id), code)
            self.watcher.finished(cell, self.failures[cell.id])

    def _submit(self, cell: Cell) -> None:
        file, log = self.directory / "specs" / f"{cell.id}.toml", log_of(self.directory, cell.id)
        try:
            for path in (file, log):
                path.parent.mkdir(exist_ok=True)
            write_atomic(file, cell.spec.to_toml().encode())
        except OSError as error:
            raise UserError(f"cannot write {file}: {error.strerror}") from error
        command = under_torchrun(run_command(file, self.directory), self.processes)
        self.launcher.submit(Job(cell.id, command, log, self.processes))

    def _record(self, cell: Cell) -> Record:
        return Record(self.directory / cell.id)


def run_command(spec: Path, directory: Path) -> tuple[str, ...]:
    """The command line of one run: the whole contract with a launcher."""
    flags = ("--out", str(directory), "--no-track", "--quiet")
    return (sys.executable, "-m", "harness.cli.main", "run", str(spec), *flags)


def under_torchrun(command: tuple[str, ...], processes: int) -> tuple[str, ...]:
    """A command `python -m ...` as several processes of one run on one node.

    torchrun leaves SIGTERM alone: a launcher sends it to the ranks themselves, which stop together behind a checkpoint.
    """
    if processes == 1:
        return command
    flags = ("--standalone", f"--nproc-per-node={processes}", "--signals-to-handle=SIGINT")
    return (command[0], "-m", "torch.distributed.run", *flags, *command[1:])
