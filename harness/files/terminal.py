"""Layout of tables and text: wrapped to fit a terminal, unwrapped in a pipe or a file."""

from __future__ import annotations

import re
import textwrap

from rich.console import Console, RenderableType
from rich.table import Table

FILLED = 100
"""Length of a docstring line that was wrapped, so that the next line continues it, unless it ends with a full
stop."""
EQUATION = re.compile(r"\S+ = ")


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
