"""The seam of the launchers: jobs go in, events come out, and a signal stops them softly.

A job is a command line. A launcher knows where and when it starts and how it ended, nothing of what it does; the engine behind
it (a pool of processes, SLURM, Ray) schedules and retries.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol, Self

from sweeps.launch.lost_terminal import leave_dead_terminals


@dataclass(frozen=True)
class Job:
    """A command line to run; its output is added to a log file."""

    name: str
    command: tuple[str, ...]
    log: Path
    ranks: int = 1
    """Of more than one the command is only the parent (torchrun): they themselves are told to stop."""


@dataclass(frozen=True)
class Resources:
    """What an engine gives to one run, on one node."""

    cpus: int = 1
    gpus: int = 0
    memory: str | None = None
    """As SLURM writes it, `16G`; None leaves it to the engine."""
    minutes: int | None = None
    """The time limit of one attempt; a run that reaches it stops behind a checkpoint and queues again."""


@dataclass(frozen=True)
class Started:
    name: str


@dataclass(frozen=True)
class Finished:
    name: str
    code: int
    """As of `subprocess`: negative for a signal."""


Event = Started | Finished


class Launcher(Protocol):
    """Runs jobs in the order in which they are submitted. As a context it gives back what it holds, however it is left."""

    stopped_by: int | None
    """The signal that `cancel` was given first."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    @property
    def active(self) -> bool:
        """Whether anything is running, waiting to run, or not told yet."""

    def holds(self, name: str) -> bool:
        """Whether the engine still has a job of this name from an earlier coordinator; `submit` then takes it over."""

    def submit(self, job: Job) -> None:
        """Queue a job behind the others; after `cancel` none is started."""

    def poll(self, seconds: float = 0.1) -> list[Event]:
        """What happened since the last call; waits up to `seconds` when nothing did."""

    def cancel(self, number: int = signal.SIGINT) -> None:
        """Start nothing more and let what runs write its checkpoint; the second time, kill it. Safe in a signal handler."""


@contextmanager
def stop_on_signals(launcher: Launcher) -> Iterator[None]:
    """Inside: SIGINT, SIGTERM or a hang-up cancels the launcher, and `KeyboardInterrupt` follows the second one."""

    def handle(number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_dead_terminals()
        again = launcher.stopped_by is not None
        launcher.cancel(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        if again:
            raise KeyboardInterrupt

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else it was started with nohup
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
