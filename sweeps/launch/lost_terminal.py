"""Lost terminals: a closed window or connection must not end a process that only prints there."""

from __future__ import annotations

import errno
import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager

STDOUT, STDERR = 1, 2


@contextmanager
def survive_lost_terminal() -> Iterator[None]:
    """Discard output, now and later, if its terminal is lost inside the block."""
    try:
        yield
    except OSError:
        if not detach_lost_terminals():
            raise


def detach_lost_terminals() -> bool:
    """Redirect standard output and error to /dev/null if their terminal is lost; return whether one was."""
    lost = [number for number in (STDOUT, STDERR) if _is_lost(number)]
    for number in lost:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
    return bool(lost)


def _is_lost(descriptor: int) -> bool:
    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        # A descriptor that is no terminal fails with ENOTTY instead.
        return error.args[0] == errno.EIO
    return False
