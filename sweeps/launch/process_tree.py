"""A process and all below it. Under torchrun it is the ranks that write the checkpoint, each in a session of its own."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path


def family(pid: int) -> Iterator[int]:
    """A process and its descendants, parents first; without /proc itself alone."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # it has just ended
            continue
        for child in children:
            yield from family(int(child))


def tell(pid: int) -> None:
    """TERM to a family. Whoever was started `shielded` takes the first one as the wish to stop, and no harm from others."""
    for each in family(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGTERM)


def kill(pid: int) -> None:
    """End a family and all that shares a process group with one of it, but for the caller's own group."""
    members, groups = list(family(pid)), set()
    for each in members:
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(each))
            os.kill(each, signal.SIGKILL)
    for group in groups - {os.getpgrp()}:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def shielded() -> None:
    """In a child, before its command: TERM is ignored until the run itself listens, and by torchrun for good."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
