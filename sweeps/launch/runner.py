"""The runner of a study: it starts every unfinished run, follows it to its end, and reports progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.errors import UserError
from harness.files.files import write_atomic
from harness.records.early_end import end_words
from harness.records.record import Record, failure_reason
from harness.records.study_folder import StudyFolder
from sweeps.launch.base import Job, Launcher, Started
from sweeps.plan.plan import PlannedRun
from sweeps.plan.run_state import read_state


class Watcher(Protocol):
    """Receives the progress of runs, to display it."""

    def started(self, run: PlannedRun) -> None: ...
    def finished(self, run: PlannedRun, failure: str | None) -> None: ...
    def stopping(self) -> None: ...
    def tick(self) -> None: ...


@dataclass
class StudyRunner:
    """Runs planned runs with a launcher; `on_done` receives the record of each finished one.

    `failures` holds the reason of each failed run by id.
    """

    runs: Iterable[PlannedRun]
    """In the order in which they start; each is submitted as soon as it is known."""
    directory: Path
    launcher: Launcher
    watcher: Watcher
    on_done: Callable[[Record], None]
    processes: int = 1
    """Ranks of one run; several start under torchrun."""
    failures: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Start unfinished runs in their order; return when none is left, or after a signal.

        A run that another process is training is waited for, and started here if that process stops early.
        """
        by_id: dict[str, PlannedRun] = {}
        elsewhere = []
        for run in self.runs:
            by_id[run.id] = run
            if self._runs_elsewhere(run):
                elsewhere.append(run)
        notified = False
        while self.launcher.active or (elsewhere and self.launcher.stopped_by is None):
            for event in self.launcher.poll():
                if isinstance(event, Started):
                    self.watcher.started(by_id[event.name])
                else:
                    self._ended(by_id[event.name], event.code)
            elsewhere = [run for run in elsewhere if self._runs_elsewhere(run, waited=True)]
            if self.launcher.stopped_by is not None and not notified:
                self.watcher.stopping()
                notified = True
            self.watcher.tick()

    def _runs_elsewhere(self, run: PlannedRun, *, waited: bool = False) -> bool:
        """Return whether another coordinator's process trains this run; otherwise submit it, unless done.

        Jobs that an earlier sweep left with the engine belong to this launcher.
        """
        status = read_state(run, self.directory).status
        if status == "running" and self.launcher.holds(run.id):
            status = "queued"
        if status == "done" and waited:
            self._ended(run, 0)
        elif status not in ("done", "running"):
            self._submit(run)
        return status == "running"

    def _ended(self, run: PlannedRun, code: int) -> None:
        record = Record(self.directory / run.id)
        if read_state(run, self.directory).status == "done":
            self.watcher.finished(run, None)
            self.on_done(record)
        elif self.launcher.stopped_by is None:
            self.failures[run.id] = failure_reason(record, exit_code=code)
            self.watcher.finished(run, self.failures[run.id])

    def _submit(self, run: PlannedRun) -> None:
        folder = StudyFolder(self.directory)
        log = folder.log_file(run.id)
        # A run has one file of its spec, and one more for each further evaluation.
        specs = [folder.spec_file(f"{run.id}{'' if n == 0 else f'-{n}'}") for n, _ in enumerate(run.variants)]
        for file, spec in zip(specs, run.variants, strict=True):
            try:
                for path in (file, log):
                    path.parent.mkdir(exist_ok=True)
                write_atomic(file, spec.to_toml().encode())
            except OSError as error:
                raise UserError(f"cannot write {file}: {error.strerror}") from error
        words = (*evaluation_words(specs[1:]), *end_words(run.end))
        command = (*run_command(specs[0], self.directory), *words)
        command = under_torchrun(command, self.processes)
        self.launcher.submit(Job(run.id, command, log, self.processes))


def run_command(spec: Path, directory: Path) -> tuple[str, ...]:
    """Return the command line of one run."""
    flags = ("--out", str(directory), "--no-track", "--quiet")
    return (sys.executable, "-m", "harness.cli.main", "run", str(spec), *flags)


def evaluation_words(specs: Sequence[Path]) -> tuple[str, ...]:
    """Return the options of a run's command line for further evaluations."""
    return tuple(word for file in specs for word in ("--evaluate", str(file)))


def under_torchrun(command: tuple[str, ...], processes: int) -> tuple[str, ...]:
    """Return a command `python -m ...` as several processes of one run on one node.

    torchrun does not handle SIGTERM: a launcher sends it to the ranks themselves, which stop together after a
    checkpoint.
    """
    if processes == 1:
        return command
    flags = ("--standalone", f"--nproc-per-node={processes}", "--signals-to-handle=SIGINT")
    return (command[0], "-m", "torch.distributed.run", *flags, *command[1:])
