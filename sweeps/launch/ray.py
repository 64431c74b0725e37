"""The Ray launcher: each run is a Ray task with its own resources; Ray schedules it, and retries it if its
node dies.

A task starts `sweeps.launch.retries` on its node and watches it, so that a run is handled in the same way
under Ray and SLURM. Ray ends the tasks of a driver that dies: their runs write a checkpoint, and the same
command resumes them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from harness.errors import UserError, first_line
from sweeps.launch.base import Event, Finished, Job, Resources, Started
from sweeps.launch.handoff import Handoff, append_error
from sweeps.launch.retries import CANCEL, RETRIES, RETRY

CONNECT_SECONDS = 10.0
PRIORITY = "RAY_worker_niceness"
"""Ray's variable for the priority of its tasks."""
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class RunAgain(Exception):
    """A run was killed and is to be retried."""


class RayLauncher:
    """Runs jobs as Ray tasks, at most `at_a_time` together, on the cluster at `address` or on a local one
    that it starts.

    As a context manager it disconnects, which ends its tasks. Raises `UserError` if Ray is missing, or if the
    cluster cannot be reached or is too small for a run.
    """

    def __init__(
        self,
        handoff: Handoff,
        resources: Resources,
        *,
        address: str | None = None,
        at_a_time: int | None = None,
    ) -> None:
        self._handoff, self._resources, self._at_a_time = handoff, resources, at_a_time
        self._address, self._memory = address, in_bytes(resources.memory)
        self._waiting: deque[Job] = deque()
        self._sent: dict[Any, Job] = {}
        self._begun: set[str] = set()
        self.stopped_by: int | None = None

    def __enter__(self) -> RayLauncher:
        ray = _connect(self._address)
        self._task = ray.remote(
            num_cpus=self._resources.cpus,
            num_gpus=self._resources.gpus,
            memory=self._memory,
            max_retries=RETRIES,
            retry_exceptions=[RunAgain],
        )(_task)
        try:
            _check_size(ray, self._resources)
        except UserError:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    @property
    def active(self) -> bool:
        """True while a job is a Ray task or waits to be one."""
        return bool(self._sent or (self._waiting and self.stopped_by is None))

    def holds(self, name: str) -> bool:
        """Return False: Ray ends the tasks of a driver that dies."""
        return False

    def submit(self, job: Job) -> None:
        """Add a job to the end of the queue; after `cancel`, no job starts."""
        self._waiting.append(job)

    def poll(self, seconds: float = 0.1) -> list[Event]:
        """Return the events since the last call; wait up to `seconds` if no task has ended."""
        self._send()
        ended = self._ended()
        if not ended:
            time.sleep(seconds)
        events = self._started()
        for task in ended:
            job = self._sent.pop(task)
            events.append(Finished(job.name, self._exit_code(job, task)))
        return events

    def cancel(self, number: int = signal.SIGINT) -> None:
        """Remove waiting jobs and let running ones write a checkpoint.

        A second call ends them immediately.
        """
        import ray

        force, self.stopped_by = self.stopped_by is not None, self.stopped_by or number
        for task in list(self._sent):
            ray.cancel(task, force=force)

    def _send(self) -> None:
        room = len(self._waiting) if self._at_a_time is None else self._at_a_time - len(self._sent)
        jobs = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        if not jobs or self.stopped_by is not None:
            return
        table = str(self._handoff.table(self._handoff.write_submission(jobs)).resolve())
        for index, job in enumerate(jobs):
            self._sent[self._task.options(name=job.name).remote(table, index)] = job

    def _ended(self) -> list[Any]:
        """Return the tasks that have ended; `ray.wait` rejects an empty list."""
        if not self._sent:
            return []
        import ray

        return ray.wait(list(self._sent), num_returns=len(self._sent), timeout=0)[0]

    def _started(self) -> list[Event]:
        begun, ended = self._handoff.outcomes()
        new = [
            job.name
            for job in self._sent.values()
            if job.name in begun | ended and job.name not in self._begun
        ]
        self._begun |= set(new)
        return [Started(name) for name in new]

    def _exit_code(self, job: Job, task: Any) -> int:
        """Return the exit code of a task's run; append an error of Ray's to the run's log."""
        import ray
        import ray.exceptions

        try:
            ray.get(task)
            return self._handoff.exit_code(job.name)
        except ray.exceptions.TaskCancelledError:
            return 130
        except ray.exceptions.RayError as error:
            append_error(job.log, f"Ray gave up this run: {str(error).strip().splitlines()[-1]}")
            return 1


def in_bytes(size: str | None) -> int | None:
    """Return a size in SLURM's notation, for example `16G`, in bytes; a bare number counts MiB.

    Raises `UserError` for anything else.
    """
    if size is None:
        return None
    number, unit = (size[:-1], size[-1].upper()) if size[-1:].upper() in UNITS else (size, "M")
    if not number.isdecimal():
        raise UserError(f"--mem {size} is not a size; give an integer with K, M, G or T, for example 16G")
    return int(number) * UNITS[unit]


def _task(table: str, index: int) -> None:
    """Follow the process of one job on its node; pass a cancellation on and wait for the checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps.launch.retries", table, str(index)], stdin=subprocess.PIPE
    )
    while True:
        try:
            code = process.wait(0.2)
            break
        except subprocess.TimeoutExpired:
            continue
        # `ray.cancel` raises this in the task.
        except KeyboardInterrupt:
            process.send_signal(CANCEL)
            process.wait()
            raise
    if code == RETRY:
        raise RunAgain(f"{Path(table).name} {index}")


def _connect(address: str | None) -> Any:
    """Return Ray, connected; without an address, start it on the loopback interface and without its
    dashboard."""
    # Ray would send usage statistics otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Off on Linux by default; without this switch for one machine, Ray listens on every interface.
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # By default Ray's tasks have priority 15: next to any other process a run would almost stand still.
        os.environ.setdefault(PRIORITY, "0")
    try:
        import ray
    except ImportError as error:
        raise UserError("--launcher ray needs Ray: pip install 'flowrace[ray]'") from error
    _check_reachable(address)
    dashboard = None if address else False
    try:
        ray.init(
            address or "local", include_dashboard=dashboard, log_to_driver=False, configure_logging=False
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"no Ray cluster at {address or 'this machine'}: {reason}") from error
    return ray


def _check_reachable(address: str | None) -> None:
    """Raise `UserError` if nothing listens at the address: Ray would try for minutes, then end this
    process."""
    host, _, port = (address or "").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster at {address}: {error}") from error


def _check_size(ray: Any, resources: Resources) -> None:
    """Raise `UserError` if no node is large enough for a run, which would wait forever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= resources.cpus and n.get("GPU", 0) >= resources.gpus for n in nodes):
        largest = ", ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
        raise UserError(
            f"no node of the Ray cluster has {resources.cpus} CPUs and {resources.gpus} GPUs for a run "
            f"(available: {largest})"
        )
