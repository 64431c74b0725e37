"""How a sweep shows itself while it runs: live lines in a terminal, a plain line now and then elsewhere. It outlives the
terminal: what cannot be shown any more stops no run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.records.record import Record
from sweeps.launch.lost_terminal import outliving_the_terminal
from sweeps.plan.plan import Cell
from sweeps.plan.run_state import Pace, pace

REFRESH_SECONDS, LINE_SECONDS = 0.3, 30.0


class Lines:
    """A plain line at every start and end, and about every half minute. As a context it cleans up behind itself.

    The time that is left is estimated from the steps done since the start, start-up and evaluations included.
    """

    every = LINE_SECONDS

    def __init__(
        self, cells: Sequence[Cell], directory: Path, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory, self._now = directory, now
        self._since = self._last = now()
        self._total = len(cells)
        open_cells = [cell for cell in cells if Record(directory / cell.id).status != "done"]
        self._begun = {cell.id: pace(directory / cell.id).step for cell in open_cells}
        self._todo = {cell.id: cell.spec.train.steps - self._begun[cell.id] for cell in open_cells}
        self._running: dict[str, Cell] = {}
        self._ended: set[str] = set()
        self._failed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, message: str) -> None:
        with outliving_the_terminal():
            click.echo(message, err=True)

    def started(self, cell: Cell) -> None:
        self._running[cell.id] = cell
        number = self._total - len(self._begun) + len(self._ended) + len(self._running)
        self.note(f"run {number} of {self._total} started: {cell.label} ({cell.id})")

    def finished(self, cell: Cell, failure: str | None) -> None:
        self._running.pop(cell.id, None)
        self._ended.add(cell.id)
        self._failed += failure is not None
        self.note(f"{cell.label}: " + ("done" if failure is None else f"FAILED: {failure}"))

    def stopping(self) -> None:
        self.note("stopping: runs write a checkpoint; a second Ctrl-C kills them")

    def tick(self) -> None:
        """Show where things stand, if it is time."""
        if self._running and self._now() - self._last >= self.every:
            self._last = self._now()
            self._show([(cell, pace(self._directory / cell.id)) for cell in self._running.values()])

    def summary(self, paces: Sequence[tuple[Cell, Pace]]) -> str:
        """`3 of 9 runs done, 1 failed, 4:10 left`."""
        done = self._total - len(self._begun) + len(self._ended) - self._failed
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{done} of {self._total} runs done{failed}, {clock(self._seconds_left(paces))} left"

    def _show(self, paces: Sequence[tuple[Cell, Pace]]) -> None:
        runs = [f"{cell.label}: " + ", ".join(_words(cell, at)) for cell, at in paces]
        self.note("; ".join([*runs, self.summary(paces)]))

    def _seconds_left(self, paces: Sequence[tuple[Cell, Pace]]) -> float | None:
        ended = sum(self._todo[run] for run in self._ended)
        done = ended + sum(max(0, at.step - self._begun[cell.id]) for cell, at in paces)
        return (self._now() - self._since) * (sum(self._todo.values()) - done) / done if done else None


class Bars(Lines):
    """One live line for each running run and one for the whole study."""

    every = REFRESH_SECONDS

    def __enter__(self) -> Self:
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        with outliving_the_terminal():
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with outliving_the_terminal():
            self._live.stop()

    def note(self, message: str) -> None:
        with outliving_the_terminal():
            self._live.console.print(Text(message))

    def _show(self, paces: Sequence[tuple[Cell, Pace]]) -> None:
        table = Table.grid(padding=(0, 2))
        for cell, at in paces:
            bar = ProgressBar(total=cell.spec.train.steps, completed=at.step, width=24)
            table.add_row(Text(cell.label), bar, *map(Text, _words(cell, at)))
        with outliving_the_terminal():
            self._live.update(Group(table, Text(self.summary(paces))), refresh=True)


def clock(seconds: float | None) -> str:
    """Seconds as `h:mm:ss` or `m:ss`; `?` where they are not known."""
    if seconds is None:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _words(cell: Cell, at: Pace) -> list[str]:
    """Step, loss, speed and time left of a run."""
    steps, rate = cell.spec.train.steps, at.steps_per_second
    loss = "loss ?" if at.loss is None else f"loss {at.loss:.4f}"
    speed = "? steps/s" if rate is None else f"{rate:.1f} steps/s"
    left = None if rate is None else (steps - at.step) / rate
    return [f"step {at.step} of {steps}", loss, speed, f"{clock(left)} left"]
