"""The collector of cyclic garbage during commands that read many records."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

OBJECTS = 100_000
"""New objects between two passes over them; Python's default is 700."""


@contextmanager
def collecting_rarely() -> Iterator[None]:
    """Look for cyclic garbage rarely, because records have none, and hundreds of thousands of objects."""
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
