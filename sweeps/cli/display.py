"""The progress display of a sweep: live lines in a terminal, occasional plain lines elsewhere.

A display survives the loss of its terminal: output that cannot be shown stops no run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import click
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.files.files import read_tail
from harness.files.progress import format_duration, stderr_console
from harness.records.study_folder import StudyFolder
from sweeps.launch.lost_terminal import survive_lost_terminal
from sweeps.plan.plan import PlannedRun
from sweeps.plan.run_state import Pace, read_pace, read_state

REFRESH_SECONDS, LINE_SECONDS = 0.3, 30.0
LOADING = ("opening ", "reading ", "waiting ")
"""Beginnings of the notes by which a run shows what it does before its first step."""


class PlainDisplay:
    """Prints a line at every start and end, and about every half minute.

    The remaining time is estimated from the steps since the start, start-up and evaluations included.
    """

    every = LINE_SECONDS

    def __init__(
        self, runs: Sequence[PlannedRun], directory: Path, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory, self._now = directory, now
        self._since = self._last = now()
        self._total = len(runs)
        unfinished = [run for run in runs if read_state(run, directory).status != "done"]
        self._first_step = {run.id: read_pace(directory / run.id).step for run in unfinished}
        self._steps_left = {
            run.id: max(0, run.spec.train.steps - self._first_step[run.id]) for run in unfinished
        }
        self._running: dict[str, PlannedRun] = {}
        self._ended: set[str] = set()
        self._failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, message: str) -> None:
        with survive_lost_terminal():
            click.echo(message, err=True)

    def started(self, run: PlannedRun) -> None:
        self._running[run.id] = run
        number = self._total - len(self._first_step) + len(self._ended) + len(self._running)
        self.note(f"run {number} of {self._total} started: {run.label} ({run.id})")

    def finished(self, run: PlannedRun, failure: str | None) -> None:
        self._running.pop(run.id, None)
        self._ended.add(run.id)
        self._failed += failure is not None
        self.note(f"{run.label}: " + ("done" if failure is None else f"FAILED: {failure}"))

    def stopping(self) -> None:
        self.note("stopping: runs write a checkpoint; a second Ctrl-C kills them")

    def tick(self) -> None:
        """Show the progress of the running runs, if it is time."""
        if self._running and self._now() - self._last >= self.every:
            self._last = self._now()
            self._show([(run, read_pace(self._directory / run.id)) for run in self._running.values()])

    def summary(self, paces: Sequence[tuple[PlannedRun, Pace]]) -> str:
        """Return for example `3 of 9 runs done, 1 failed, 4:10 left`."""
        done = self._total - len(self._first_step) + len(self._ended) - self._failed
        failed = f", {self._failed} failed" if self._failed else ""
        left = format_duration(self._seconds_left(paces))
        return f"{done} of {self._total} runs done{failed}, {left} left"

    def _show(self, paces: Sequence[tuple[PlannedRun, Pace]]) -> None:
        runs = [f"{run.label}: " + ", ".join(self._progress(run, pace)) for run, pace in paces]
        self.note("; ".join([*runs, self.summary(paces)]))

    def _progress(self, run: PlannedRun, pace: Pace) -> list[str]:
        """Return step, loss, speed and remaining time of a run; before its first step, what it is loading."""
        if pace.step <= self._first_step.get(run.id, 0) and (loading := self._loading(run)):
            return [loading]
        return _progress(run, pace)

    def _loading(self, run: PlannedRun) -> str:
        """Return the last line of a run's log if it names a preparation, else an empty text."""
        lines = read_tail(StudyFolder(self._directory).log_file(run.id)).decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines[:-1]) if line.strip()), "")
        return last if last.startswith(LOADING) else ""

    def _seconds_left(self, paces: Sequence[tuple[PlannedRun, Pace]]) -> float | None:
        ended = sum(self._steps_left[run] for run in self._ended)
        done = ended + sum(max(0, pace.step - self._first_step[run.id]) for run, pace in paces)
        left = sum(self._steps_left.values()) - done
        return (self._now() - self._since) * left / done if done else None


class LiveDisplay(PlainDisplay):
    """Shows one live line for each running run and one for the study."""

    every = REFRESH_SECONDS

    def __enter__(self) -> Self:
        self._live = Live(console=stderr_console(), auto_refresh=False, transient=True)
        with survive_lost_terminal():
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with survive_lost_terminal():
            self._live.stop()

    def note(self, message: str) -> None:
        with survive_lost_terminal():
            self._live.console.print(Text(message))

    def _show(self, paces: Sequence[tuple[PlannedRun, Pace]]) -> None:
        table = Table.grid(padding=(0, 2))
        for run, pace in paces:
            bar = ProgressBar(total=run.spec.train.steps, completed=pace.step, width=24)
            table.add_row(Text(run.label), bar, *map(Text, self._progress(run, pace)))
        with survive_lost_terminal():
            self._live.update(Group(table, Text(self.summary(paces))), refresh=True)


def make_display(runs: Sequence[PlannedRun], directory: Path) -> PlainDisplay:
    """Return the live display if standard error is a terminal, else the plain one."""
    return (LiveDisplay if sys.stderr.isatty() else PlainDisplay)(runs, directory)


def _progress(run: PlannedRun, pace: Pace) -> list[str]:
    """Return step, loss, speed and remaining time of a run."""
    steps, rate = run.spec.train.steps, pace.steps_per_second
    loss = "loss ?" if pace.loss is None else f"loss {pace.loss:.4f}"
    speed = "? steps/s" if rate is None else f"{rate:.1f} steps/s"
    left = None if rate is None else (steps - pace.step) / rate
    return [f"step {pace.step} of {steps}", loss, speed, f"{format_duration(left)} left"]
