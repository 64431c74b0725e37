"""The local launcher: a pool of slots on this machine, one process each, started in the order of submission.

Each process leads its own session, so that Ctrl-C in the terminal reaches only this process, which passes it
on once. A process that is asked to stop writes a checkpoint first; the next start resumes one that was
killed. If a run has several ranks, SIGTERM is sent to the ranks themselves, repeatedly until they handle it.
Sent to torchrun, it would kill ranks that take half a minute.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence

from harness.errors import ERROR_PREFIX
from sweeps.launch.base import Event, Finished, Job, Started
from sweeps.launch.process_tree import ignore_sigterm, kill_tree, terminate_tree


class LocalLauncher:
    """Runs jobs, at most one per slot. With devices, slot k has only device k (modulo their number).

    As a context manager it ends all its processes on every exit.
    """

    def __init__(
        self, slots: int, *, devices: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        self.slots = slots
        self._free = sorted(range(slots), reverse=True)
        self._devices, self._env = devices, {**os.environ, **(env or {})}
        self._queue: deque[Job] = deque()
        self._running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
        self._events: list[Event] = []
        self.stopped_by: int | None = None
        """The first signal passed to `cancel`."""

    def __enter__(self) -> LocalLauncher:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill_all()
        for _job, process in self._running.values():
            process.wait()

    @property
    def active(self) -> bool:
        """True while a job is running or waiting for a slot, or an event has not been returned yet."""
        return bool(self._running or self._events or (self._queue and self.stopped_by is None))

    def holds(self, name: str) -> bool:
        """Return False: jobs of an earlier coordinator are not children of this process.

        The lock of their record shows that they run.
        """
        return False

    def submit(self, job: Job) -> None:
        """Add a job to the end of the queue, and start it if a slot is free.

        After `cancel`, no job starts.
        """
        self._queue.append(job)
        self._step()

    def poll(self, seconds: float = 0.1) -> list[Event]:
        """Return the events since the last call; without any, wait up to `seconds` for one.

        Free slots are filled first, so that a slow caller leaves none idle.
        """
        self._step()
        if not self._events and seconds:
            time.sleep(seconds)
            self._step()
        events, self._events = self._events, []
        return events

    def cancel(self, number: int = signal.SIGINT) -> None:
        """Start no more jobs and pass a signal on to running ones.

        A second call kills them. Safe in a signal handler.
        """
        if self.stopped_by is not None:
            self._kill_all()
            return
        self.stopped_by = number
        for job, process in list(self._running.values()):
            _stop(job, process, number)

    def _step(self) -> None:
        for slot, (job, process) in list(self._running.items()):
            if (code := process.poll()) is not None:
                del self._running[slot]
                self._free.append(slot)
                self._events.append(Finished(job.name, code))
            elif self.stopped_by is not None and job.ranks > 1:
                terminate_tree(process.pid)
        self._free.sort(reverse=True)
        while self._free and self._queue and self.stopped_by is None:
            self._start(self._queue.popleft(), self._free.pop())

    def _start(self, job: Job, slot: int) -> None:
        device = {"CUDA_VISIBLE_DEVICES": self._devices[slot % len(self._devices)]} if self._devices else {}
        with open(job.log, "ab") as log:
            try:
                process = subprocess.Popen(
                    job.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._env | device,
                    start_new_session=True,
                    preexec_fn=ignore_sigterm if job.ranks > 1 else None,
                )
            except OSError as error:
                log.write(f"{ERROR_PREFIX}cannot start {job.command[0]}: {error.strerror}\n".encode())
                self._free.append(slot)
                self._events.append(Finished(job.name, 127))
                return
        self._running[slot] = (job, process)
        self._events.append(Started(job.name))
        # The signal may have arrived while the process was being started.
        if self.stopped_by is not None:
            _stop(job, process, self.stopped_by)

    def _kill_all(self) -> None:
        for _, process in list(self._running.values()):
            if process.poll() is None:
                kill_tree(process.pid)


def _stop(job: Job, process: subprocess.Popen[bytes], number: int) -> None:
    """Ask a process, or its ranks, to stop."""
    if job.ranks > 1:
        terminate_tree(process.pid)
    else:
        process.send_signal(number)
