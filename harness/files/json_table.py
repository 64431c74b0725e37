"""JSON tables next to runs, filled row by row by commands that may run at the same time without losing each
other's rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files.files import locked, write_atomic, writing


@contextmanager
def adding_to(file: Path) -> Iterator[None]:
    """Hold the lock of a table while it is read again and written; raises `UserError` if it cannot be locked
    or written."""
    with writing(file), locked(file):
        yield


def kept(file: Path, protocol: Mapping[str, Any], rows: str, of: str = "") -> dict[str, Any]:
    """The `rows` of a table `of` something that are measured already; none where they were under another
    protocol, for a table has one. Raises `UserError` for a file that is no such table."""
    if not file.is_file():
        return {}
    try:
        table = json.loads(file.read_text())
        return dict(table[rows]) if table["protocol"] == protocol else {}
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no table of {of or rows}; move it away and run this again") from error


def write_table(file: Path, table: Mapping[str, Any]) -> None:
    write_atomic(file, (json.dumps(table, indent=1, allow_nan=False) + "\n").encode())
