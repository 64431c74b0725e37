"""Progress bars on standard error, shown only in a terminal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from harness.files.terminal import Console

T = TypeVar("T")
SLOW = 2.0
"""Seconds after which a preparation is worth a note."""


def stderr_console() -> Console:
    """Return the console of all live displays; standard output is for results."""
    return Console(stderr=True)


def make_bar(*columns: str | ProgressColumn, transient: bool = True, hidden: bool = False) -> Progress:
    """Return a bar with these columns and the remaining time; hidden if standard error is no terminal."""
    console = stderr_console()
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=hidden or not console.is_terminal,
    )


@contextmanager
def progress_bar(
    total: int | None, what: str, *, done: int = 0, unit: str = "", hidden: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show a bar inside the block; yield the function that advances it. With a `unit` it shows the rate."""
    rate = ["{task.fields[rate]}"] if unit else []
    # A description may contain brackets, for example a path.
    description = TextColumn("{task.description}", markup=False)
    columns = (description, BarColumn(), MofNCompleteColumn(), *rate)
    with make_bar(*columns, hidden=hidden or total == 0) as bar:
        task = bar.add_task(what, total=total, completed=done, rate="")

        def advance(count: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=count, rate=f"{speed:.1f} {unit}/s" if speed else "")

        yield advance


@contextmanager
def announced(note: Callable[[str], None], what: str, after: float = SLOW) -> Iterator[None]:
    """Note what is done inside the block, once it has taken `after` seconds."""
    timer = threading.Timer(after, note, (what,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def tracked(items: Sequence[T], what: str) -> Iterator[T]:
    """Yield the items and show a progress bar."""
    with progress_bar(len(items), what) as advance:
        for item in items:
            yield item
            advance(1)


def format_duration(seconds: float | None) -> str:
    """Return seconds as `h:mm:ss` or `m:ss`; `?` if unknown.

    >>> format_duration(59.6), format_duration(3600), format_duration(None)
    ('1:00', '1:00:00', '?')
    """
    if seconds is None:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
