"""Work on many records in threads: the parser of columns and the hashes leave other threads to work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from harness.errors import UserError
from harness.records.record import Record

T = TypeVar("T")
S = TypeVar("S")
READERS = 4
"""Most threads that read records."""


def in_threads(work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield the result for each item in order. An error is raised in the place of its result."""
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        yield from pool.map(work, items)


def read_ahead(records: Iterable[Record], summary: Callable[[Record], T]) -> dict[Path, T]:
    """Read the events of records, and return a summary of each by its folder.

    It is made in the same thread, so that it takes the memory of what was read. A record with an error has
    none, and its error is raised when it is used.
    """
    found: dict[Path, T] = {}

    def read(record: Record) -> None:
        with suppress(UserError, LookupError):
            record.load_log()
            found[record.path] = summary(record)

    for _ in in_threads(read, records):
        pass
    return found
