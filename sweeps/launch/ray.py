"""The Ray launcher: each run is a Ray task with the resources that it asks for; Ray schedules, and retries when a node dies.

A task starts `sweeps.launch.node` on its node and watches it, so that what happens to a run is the same under Ray and SLURM. Ray
ends the tasks of a driver that dies: then the runs write their checkpoints, and the same command continues them.
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

from harness.errors import UserError
from sweeps.launch.base import Event, Finished, Job, Resources, Started
from sweeps.launch.handoff import Board, add_line
from sweeps.launch.node import AGAIN, CANCEL, RETRIES

CONNECT_SECONDS = 10.0
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class RunAgain(Exception):
    """A run was killed and is to be started again."""


class RayLauncher:
    """Runs jobs as Ray tasks, at most `at_a_time` together, on the cluster at `address` or one that is started here.

    As a context it disconnects, which ends what it has started. Raises `UserError` where Ray is not there, or the cluster
    cannot be reached or is too small for a run.
    """

    def __init__(
        self,
        board: Board,
        resources: Resources,
        *,
        address: str | None = None,
        at_a_time: int | None = None,
    ) -> None:
        self._board, self._resources, self._at_a_time = board, resources, at_a_time
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
        """Whether anything is in Ray's hands, or waits to be."""
        return bool(self._sent or (self._waiting and self.stopped_by is None))

    def holds(self, name: str) -> bool:
        """Never: Ray ends the tasks of a driver that dies."""
        return False

    def submit(self, job: Job) -> None:
        """Queue a job behind the others; after `cancel` none is started."""
        self._waiting.append(job)

    def poll(self, seconds: float = 0.1) -> list[Event]:
        """What happened since the last call; waits up to `seconds` when nothing did."""
        self._send()
        if not self._sent:
            return []
        import ray

        ended, _ = ray.wait(list(self._sent), num_returns=len(self._sent), timeout=0)
        if not ended:
            time.sleep(seconds)
        events = self._look()
        for task in ended:
            job = self._sent.pop(task)
            events.append(Finished(job.name, self._code(job, task)))
        return events

    def cancel(self, number: int = signal.SIGINT) -> None:
        """Take back what waits and let what runs write its checkpoint; the second time, leave it behind at once."""
        import ray

        force, self.stopped_by = self.stopped_by is not None, self.stopped_by or number
        for task in list(self._sent):
            ray.cancel(task, force=force)

    def _send(self) -> None:
        room = len(self._waiting) if self._at_a_time is None else self._at_a_time - len(self._sent)
        jobs = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        if not jobs or self.stopped_by is not None:
            return
        table = str(self._board.table(self._board.post(jobs)).resolve())
        for index, job in enumerate(jobs):
            self._sent[self._task.options(name=job.name).remote(table, index)] = job

    def _look(self) -> list[Event]:
        begun, ended = self._board.seen()
        new = [
            job.name
            for job in self._sent.values()
            if job.name in begun | ended and job.name not in self._begun
        ]
        self._begun |= set(new)
        return [Started(name) for name in new]

    def _code(self, job: Job, task: Any) -> int:
        """How a task ended, as the exit code of its run; what Ray has to say goes into the run's log."""
        import ray

        try:
            ray.get(task)
            return self._board.code(job.name)
        except ray.exceptions.TaskCancelledError:
            return 130
        except ray.exceptions.RayError as error:
            add_line(job.log, f"Ray gave up this run: {str(error).strip().splitlines()[-1]}")
            return 1


def in_bytes(size: str | None) -> int | None:
    """`16G`, as SLURM writes it, in bytes; a bare number counts MiB, as there. Raises `UserError`."""
    if size is None:
        return None
    number, unit = (size[:-1], size[-1].upper()) if size[-1:].upper() in UNITS else (size, "M")
    if not number.isdecimal():
        raise UserError(f"--mem {size} is no size of memory; give a whole number with K, M, G or T, as 16G")
    return int(number) * UNITS[unit]


def _task(table: str, index: int) -> None:
    """On the node: follow the process of one job; a task that is cancelled passes it on and waits for the checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeps.launch.node", table, str(index)], stdin=subprocess.PIPE
    )
    while True:
        try:
            code = process.wait(0.2)
            break
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:  # as which `ray.cancel` arrives
            process.send_signal(CANCEL)
            process.wait()
            raise
    if code == AGAIN:
        raise RunAgain(f"{Path(table).name} {index}")


def _connect(address: str | None) -> Any:
    """Ray, connected; started here, on the loopback interface alone and without its dashboard, where no address is given."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it would call home
    if (
        address is None
    ):  # Ray's own switch for one machine alone, off on Linux: else it listens on every interface
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
    except ImportError as error:
        raise UserError("--launcher ray needs Ray: pip install 'flowrace[ray]'") from error
    _check_reachable(address)
    place = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        ray.init(**place, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"no Ray cluster at {address or 'this machine'}: {reason}") from error
    return ray


def _check_reachable(address: str | None) -> None:
    """Ray itself would try for minutes, and then end this process."""
    host, _, port = (address or "").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster at {address}: {error}") from error


def _check_size(ray: Any, resources: Resources) -> None:
    """A run that no node is large enough for would wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(n.get("CPU", 0) >= resources.cpus and n.get("GPU", 0) >= resources.gpus for n in nodes):
        largest = ", ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
        raise UserError(
            f"no node of the Ray cluster has {resources.cpus} CPUs and {resources.gpus} GPUs for a run (there are: {largest})"
        )
