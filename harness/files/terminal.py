"""Tables, prose and progress for people: as wide as they are into a pipe, laid out to fit in a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table

FILLED = 100
"""A line of a docstring this long that does not end a sentence was broken by its margin: the next one goes on with it."""
EQUATION = re.compile(r"\S+ = ")
T = TypeVar("T")


def show(table: Table, *, narrow: RenderableType | None = None) -> None:
    """Print a table. Into a pipe or a file no row is wrapped, so that `grep` finds it whole; a terminal that is too narrow for
    that gets `narrow`, or the table with its cells wrapped."""
    unlimited = Console(width=10_000)
    natural = unlimited.measure(table).maximum
    console = Console()
    if not console.is_terminal:
        console = Console(width=natural)
    console.print(narrow if narrow is not None and natural > console.width else table)


def fitted(text: str) -> str:
    """A docstring for this terminal; as it stands into a pipe or a file."""
    console = Console()
    return reflowed(text, console.width) if console.is_terminal else text


def reflowed(text: str, width: int) -> str:
    """Prose in lines of at most `width`. Short lines, indented ones and equations stay lines of their own.

    >>> print(reflowed("L = a + b\\nThe words of a line.", 12))
    L = a + b
    The words of
    a line.
    """
    lines: list[str] = []
    goes_on = False
    for line in text.splitlines():
        if goes_on and line[:1].strip() and not EQUATION.match(line):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
        goes_on = len(line) >= FILLED and line[0] != " " and line[-1] != "."
    return "\n".join(_wrapped(line, width) for line in lines)


def tracked(things: Sequence[T], what: str) -> Iterable[T]:
    """The things one by one, with a bar on standard error while it lasts; none where that is no terminal."""
    console = Console(stderr=True)
    return track(things, what, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def advancing(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar on standard error with rate and time left, where that is a terminal; gives what advances it."""
    console = Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    hidden = not (total and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def _wrapped(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line,
        width,
        subsequent_indent=f"{indent}  " if indent else "",
        break_long_words=False,
        break_on_hyphens=False,
    )
