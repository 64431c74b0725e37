"""JSON tables next to runs. Concurrent commands fill them row by row without losing each other's rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files.files import locked, write_atomic, writing
from harness.files.parse import parse_json


@contextmanager
def adding_to(file: Path) -> Iterator[None]:
    """Hold the lock of a table while its caller rereads and writes it.

    Raises `UserError` if it cannot be locked or written.
    """
    with writing(file), locked(file):
        yield


def kept(file: Path, protocol: Mapping[str, Any], rows: str, of: str = "") -> dict[str, Any]:
    """Return the existing `rows` of a table; none if they were measured under another protocol.

    Raises `UserError` if the file cannot be read or is not a table `of` this kind.
    """
    if not file.is_file():
        return {}
    try:
        table = parse_json(file.read_text())
        return dict(table[rows]) if table["protocol"] == protocol else {}
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not a table of {of or rows}; move it away and rerun the command"
        ) from error


def write_table(file: Path, table: Mapping[str, Any]) -> None:
    """Write a table atomically; raises ValueError for numbers that are not finite."""
    write_atomic(file, (json.dumps(table, indent=1, allow_nan=False) + "\n").encode())
