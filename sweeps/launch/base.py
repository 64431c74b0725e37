"""The launcher protocol: jobs go in, events come out, and a signal stops running jobs at a checkpoint.

A job is a command line. A launcher knows where and when a job started and how it ended, but not what it does.
The engine (a pool of processes, SLURM, Ray) schedules and retries.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol, Self

from sweeps.launch.lost_terminal import detach_lost_terminals


@dataclass(frozen=True)
class Job:
    """A command line to run; its output is appended to a log file."""

    name: str
    command: tuple[str, ...]
    log: Path
    ranks: int = 1
    """Processes of the run.

    With several, the command is torchrun, and stop signals go to the ranks themselves.
    """


@dataclass(frozen=True)
class Resources:
    """The resources that an engine reserves for one run, on one node."""

    cpus: int = 1
    gpus: int = 0
    memory: str | None = None
    """In SLURM's notation, for example `16G`; None leaves it to the engine."""
    minutes: int | None = None
    """Time limit of one attempt. A run that reaches it writes a checkpoint, stops, and is queued again."""


@dataclass(frozen=True)
class Started:
    """A job has started."""

    name: str


@dataclass(frozen=True)
class Finished:
    """A job has ended and is not retried."""

    name: str
    code: int
    """The exit code in the convention of `subprocess`: negative for a signal."""


Event = Started | Finished


class Launcher(Protocol):
    """Runs jobs in the order of submission. As a context manager it releases its resources on every exit."""

    stopped_by: int | None
    """The first signal passed to `cancel`."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    @property
    def active(self) -> bool:
        """True while a job is running or waiting, or an event has not been returned yet."""
        ...

    def holds(self, name: str) -> bool:
        """Return whether the engine still has a job of this name from an earlier coordinator.

        `submit` then adopts it.
        """
        ...

    def submit(self, job: Job) -> None:
        """Add a job to the end of the queue; after `cancel`, no job starts."""
        ...

    def poll(self, seconds: float = 0.1) -> list[Event]:
        """Return the events since the last call; without any, wait up to `seconds` for one."""
        ...

    def cancel(self, number: int = signal.SIGINT) -> None:
        """Start no more jobs and let running ones write a checkpoint.

        A second call kills them. Safe in a signal handler.
        """
        ...


@contextmanager
def stop_on_signals(launcher: Launcher) -> Iterator[None]:
    """Cancel the launcher on SIGINT, SIGTERM or SIGHUP inside the block; raise `KeyboardInterrupt` on the
    second signal."""

    def handle(number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            detach_lost_terminals()
        again = launcher.stopped_by is not None
        launcher.cancel(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        if again:
            raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    # SIGHUP stays ignored under nohup.
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
