"""Waiting for another process without using the core that it needs."""

from __future__ import annotations

import time
from collections.abc import Callable

PAUSE = 0.02
"""Seconds between two looks."""


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Return as soon as the condition holds; fail if it does not hold within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited for {seconds} s in vain"
        time.sleep(PAUSE)
