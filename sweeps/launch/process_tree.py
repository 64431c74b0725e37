"""Signals to a process and its descendants.

Under torchrun the ranks write the checkpoint, and each rank leads its own session.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path


def process_tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants, parents first; without /proc only the process."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        # The process has just ended.
        except OSError:
            continue
        for child in children:
            yield from process_tree(int(child))


def terminate_tree(pid: int) -> None:
    """Send SIGTERM to a process tree.

    A run that was started with `ignore_sigterm` takes the first one as the request to stop and ignores the
    others.
    """
    for each in process_tree(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGTERM)


def kill_tree(pid: int) -> None:
    """Kill a process tree and the process groups of its members, except the caller's group."""
    members, groups = list(process_tree(pid)), set()
    for each in members:
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(each))
            os.kill(each, signal.SIGKILL)
    for group in groups - {os.getpgrp()}:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def ignore_sigterm() -> None:
    """Ignore SIGTERM in a child before its command: the run handles it once it trains, torchrun never."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
