"""A terminal that is gone (a closed window, a lost connection) must not end what only shows itself there."""

from __future__ import annotations

import errno
import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager

STDOUT, STDERR = 1, 2


@contextmanager
def outliving_the_terminal() -> Iterator[None]:
    """Inside, what cannot be written because its terminal is gone is lost, and so is all that is written there later."""
    try:
        yield
    except OSError:
        if not leave_dead_terminals():
            raise


def leave_dead_terminals() -> bool:
    """Point standard output and error to nowhere where they are on a terminal that is gone; whether one was."""
    dead = [number for number in (STDOUT, STDERR) if _is_dead(number)]
    for number in dead:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    return bool(dead)


def _is_dead(descriptor: int) -> bool:
    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        return error.args[0] == errno.EIO  # what is no terminal at all says ENOTTY
    return False
