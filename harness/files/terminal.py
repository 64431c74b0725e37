"""Text in a terminal: layout, and names whose control characters are shown and not sent."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Any: streams.
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

FILLED = 100
"""Length of a docstring line that was wrapped, so that the next line continues it, unless it ends with a full
stop."""
EQUATION = re.compile(r"\S+ = ")
UNSHOWABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that change a terminal or the order of text, and bytes of names that are not UTF-8."""


def shown(text: str) -> str:
    """Return a text with control characters as escapes; line ends and tabs are kept.

    >>> shown("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return UNSHOWABLE.sub(lambda found: ascii(found[0])[1:-1], text)


class ShownStream:
    """A text stream that shows control characters of what is written. rich writes to the stream itself."""

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        return self.rich_proxied_file.write(shown(text))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


class Console(RichConsole):
    """A console of rich that shows control characters of names in tables and texts."""

    # Any: what rich can render.
    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown(segment.text), segment.style)


@contextmanager
def shown_streams() -> Iterator[None]:
    """Show control characters of everything that is written to standard output and error inside the block."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(ShownStream, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def show(table: Table, *, narrow: RenderableType | None = None) -> None:
    """Print a table. In a pipe or a file no row is wrapped, so that `grep` finds complete rows.

    In a terminal narrower than the table, print `narrow`, or the table with wrapped cells.
    """
    unlimited = Console(width=10_000)
    natural = unlimited.measure(table).maximum
    console = Console()
    if not console.is_terminal:
        console = Console(width=natural)
    console.print(narrow if narrow is not None and natural > console.width else table)


def fitted(text: str) -> str:
    """Return a docstring reflowed to this terminal's width, or unchanged for a pipe or a file."""
    console = Console()
    return reflowed(text, console.width) if console.is_terminal else text


def reflowed(text: str, width: int) -> str:
    """Return prose in lines of at most `width`. Short lines, indented ones and equations stay separate lines.

    >>> print(reflowed("L = a + b\\nThe words of a line.", 12))
    L = a + b
    The words of
    a line.
    """
    lines: list[str] = []
    continues = False
    for line in text.splitlines():
        if continues and line[:1].strip() and not EQUATION.match(line):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
        continues = len(line) >= FILLED and line[0] != " " and line[-1] != "."
    return "\n".join(_wrapped(line, width) for line in lines)


def _wrapped(line: str, width: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line,
        width,
        subsequent_indent=f"{indent}  " if indent else "",
        break_long_words=False,
        break_on_hyphens=False,
    )
