"""The local launcher: a pool of slots on this machine, one process each, started in the order of the plan.

Each process is the leader of its own session, so that Ctrl-C in the terminal reaches this process alone, which passes it on
once. A process that is told to stop writes its checkpoint first; what a killed one leaves is continued by the next start.
The ranks of a run are told themselves, with TERM, until they listen: torchrun would kill those that take half a minute.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence

from sweeps.launch.base import Event, Finished, Job, Started
from sweeps.launch.process_tree import kill, shielded, tell


class LocalLauncher:
    """Runs jobs, at most one per slot. Slot k sees the device k (modulo their number) alone, when devices are given.

    As a context it leaves no process behind, however it is left.
    """

    def __init__(
        self, slots: int, *, devices: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        self._free = sorted(range(slots), reverse=True)
        self._devices, self._env = devices, {**os.environ, **(env or {})}
        self._queue: deque[Job] = deque()
        self._running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
        self._events: list[Event] = []
        self.stopped_by: int | None = None
        """The signal that `cancel` was given first."""

    def __enter__(self) -> LocalLauncher:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        for _, process in self._running.values():
            process.wait()

    @property
    def active(self) -> bool:
        """Whether anything is running, waiting for a slot, or not told yet."""
        return bool(self._running or self._events or (self._queue and self.stopped_by is None))

    def holds(self, name: str) -> bool:
        """Never: what an earlier coordinator left is no child of this process (its record's lock tells of it)."""
        return False

    def submit(self, job: Job) -> None:
        """Queue a job behind the others; after `cancel` none is started."""
        self._queue.append(job)

    def poll(self, seconds: float = 0.1) -> list[Event]:
        """What happened since the last call; waits up to `seconds` when nothing did. Free slots are filled first, so
        that a slow caller keeps none of them idle."""
        self._step()
        if not self._events and seconds:
            time.sleep(seconds)
            self._step()
        events, self._events = self._events, []
        return events

    def cancel(self, number: int = signal.SIGINT) -> None:
        """Start nothing more and pass a signal on to what is running; the second time, kill it. Safe in a signal handler."""
        if self.stopped_by is not None:
            self._kill()
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
                tell(process.pid)
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
                    preexec_fn=shielded if job.ranks > 1 else None,
                )
            except OSError as error:
                log.write(f"cannot start {job.command[0]}: {error.strerror}\n".encode())
                self._free.append(slot)
                self._events.append(Finished(job.name, 127))
                return
        self._running[slot] = (job, process)
        self._events.append(Started(job.name))
        if self.stopped_by is not None:  # told to stop while it was being started
            _stop(job, process, self.stopped_by)

    def _kill(self) -> None:
        for _, process in list(self._running.values()):
            if process.poll() is None:
                kill(process.pid)


def _stop(job: Job, process: subprocess.Popen[bytes], number: int) -> None:
    """Pass a wish to stop on to a process, or to its ranks."""
    if job.ranks > 1:
        tell(process.pid)
    else:
        process.send_signal(number)
