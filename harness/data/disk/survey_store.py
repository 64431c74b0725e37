"""The cache file of a survey: one line per file, sorted by name, and a last line with their checksum.

Files are read and written line by line, so that a survey of millions of files needs no memory for its cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Any: rows of JSON, whose values depend on the kind of data.
from typing import Any, NamedTuple

from harness.errors import UserError
from harness.files.files import replacing


class Entry(NamedTuple):
    """The survey of one file."""

    name: str
    """Relative to the root of the data."""
    stamp: list[int]
    items: list[list[Any]]


class Entries:
    """The entries of a cache file, asked for in the order of their names."""

    def __init__(self, store: Path) -> None:
        self._entries = _read(store)
        self._next = next(self._entries, None)

    def items(self, name: str, stamp: list[int]) -> list[list[Any]] | None:
        """Return the items of a file if they are cached for that stamp, else None."""
        while self._next is not None and self._next.name < name:
            self._next = next(self._entries, None)
        known = self._next
        return known.items if known and (known.name, known.stamp) == (name, stamp) else None


@contextmanager
def rewritten(store: Path) -> Iterator[Callable[[Entry], None]]:
    """Yield a function that writes the next entry of a new cache file, which replaces the old one at the end.

    Raises `UserError` if the file cannot be written.
    """
    total = hashlib.sha256()
    try:
        with replacing(store) as temporary, open(temporary, "wb") as file:

            def write(entry: Entry) -> None:
                line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
                total.update(line)
                file.write(line)

            yield write
            file.write(total.hexdigest().encode())
    except OSError as error:
        raise UserError(
            f"cannot write the cache {store}: {error.strerror}; free the disk or set FLOWRACE_CACHE"
        ) from error


def _read(store: Path) -> Iterator[Entry]:
    """Yield the entries of a cache file, none if it is missing or damaged."""
    if not _is_complete(store):
        return
    with open(store, "rb") as lines:
        for line in lines:
            if line.startswith(b"["):
                yield Entry(*json.loads(line))


def _is_complete(store: Path) -> bool:
    if not store.exists():
        return False
    total, last = hashlib.sha256(), b""
    with open(store, "rb") as lines:
        for line in lines:
            total.update(last)
            last = line
    return last == total.hexdigest().encode()
