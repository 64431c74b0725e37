"""Append-only files of JSON lines, each with the hash of the line before, so that an edit is detected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from harness.errors import UserError
from harness.files.files import (
    complete_lines,
    content_of,
    cut_torn_line,
    lock_file,
    no_link,
    sync_file,
    write_fully,
    writing,
)
from harness.files.parse import parse_json

# Any: rows are JSON objects.
Row = dict[str, Any]


@dataclass
class Chain:
    """An open chain, locked against other processes."""

    lines: IO[bytes]
    rows: list[Row]
    last: str
    """Hash of the last line; empty for an empty file."""
    added: int = field(default=0, init=False)

    def append(self, row: Mapping[str, Any]) -> Row:
        """Append a row and return it with the hash of the line before; raises OSError if that fails."""
        linked = {**row, "previous": self.last}
        line = json.dumps(linked).encode()
        write_fully(self.lines, line + b"\n")
        self.rows.append(linked)
        self.last, self.added = _digest(line), self.added + 1
        return linked


@contextmanager
def open_chain(
    file: Path, valid: Callable[[Row], bool], what: str, *, drop_torn: bool = False
) -> Iterator[Chain]:
    """Open a chain to append to it, and write what was appended to the disk at the end.

    `valid` checks a row, and `what` names the file in messages, for example `a register`. `drop_torn` removes
    a last line without an end, which a killed process left. Raises `UserError` for a file that was altered,
    for a link, and if it cannot be written.
    """
    with writing(file), open(file, "a+b", opener=no_link) as lines:
        lock_file(lines)
        lines.seek(0)
        content = cut_torn_line(lines) if drop_torn else lines.read()
        yield (chain := Chain(lines, *_checked(file, content, valid, what)))
        if chain.added:
            sync_file(lines)


def read_chain(file: Path, valid: Callable[[Row], bool], what: str, *, drop_torn: bool = False) -> list[Row]:
    """Return the rows of a chain; empty without a file. Raises `UserError` if it was altered."""
    content = content_of(file)
    return _checked(file, complete_lines(content) if drop_torn else content, valid, what)[0]


def read_heads(file: Path) -> list[str]:
    """Return the hash of every complete line of a chain; empty without a file."""
    return [_digest(line) for line in complete_lines(content_of(file)).splitlines()]


def _checked(file: Path, content: bytes, valid: Callable[[Row], bool], what: str) -> tuple[list[Row], str]:
    """Return the rows, and the hash of the last line, which the next line must contain."""
    rows, last = [], ""
    for number, line in enumerate(content.splitlines(), start=1):
        row = _row(line, last, valid)
        if row is None:
            raise UserError(
                f"{file} line {number} was altered, but {what} is append-only; restore the file, or "
                "start a new one"
            )
        rows.append(row)
        last = _digest(line)
    if content and not content.endswith(b"\n"):
        raise UserError(f"{file}: the last line is torn; restore the file, or remove that line")
    return rows, last


def _row(line: bytes, last: str, valid: Callable[[Row], bool]) -> Row | None:
    """Return the row of a line that continues the chain; None for any other."""
    try:
        row = parse_json(line)
        intact = isinstance(row, dict) and row.get("previous") == last and valid(row)
    # Whatever `valid` raises for values of another shape.
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None
    return row if intact else None


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
