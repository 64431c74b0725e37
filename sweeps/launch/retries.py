"""Retries under SLURM and Ray: the process that follows one job on its node and asks for another attempt.

`python -m sweeps.launch.retries TABLE INDEX` runs the job of that index in a table (handoff.py).

It turns three signals into a checkpoint of the run: USR1 if the coordinator cancels, USR2 if the time limit
is near, TERM if the engine reclaims the node. The run itself starts with TERM ignored. Once it trains, the
first TERM is the request to stop. Further ones, from the engine or from this process, are harmless.

A run that has not stopped a minute after the time limit (for example in a long evaluation) is killed. It
loses only the work since its last checkpoint, while the engine would end the job for good.

Exit code 75 (EX_TEMPFAIL) asks the engine to run the job again, after the time limit or a kill (at most three
times).
"""

from __future__ import annotations

import ctypes
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from harness.errors import ERROR_PREFIX
from harness.files.files import try_lock_file
from sweeps.launch.handoff import Handoff, SubmittedJob, read_job
from sweeps.launch.process_tree import ignore_sigterm, kill_tree, terminate_tree

CANCEL, TIME_LIMIT, RECLAIMED = signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM
RETRY, RETRIES = 75, 3
EVERY_SECONDS = 0.2
GRACE_SECONDS = 60
"""Seconds for a run to stop at its time limit; the engine allows 90."""
PR_SET_PDEATHSIG = 1


def main(table: Path, index: int, *, parent: IO[bytes] | None = None) -> int:
    """Run a job and return the exit code of this process.

    If `parent` is a pipe, its end means that the parent died.
    """
    received: list[int] = []
    for number in (CANCEL, TIME_LIMIT, RECLAIMED):
        signal.signal(number, lambda number, _: received.append(number))

    def stopping() -> list[int]:
        if not received and parent is not None and _closed(parent):
            received.append(RECLAIMED)
        return received

    submitted, handoff = read_job(table, index), Handoff(table.parent)
    _, ended = handoff.outcomes()
    # An engine may start a task twice.
    if submitted.job.name in ended:
        return 0
    os.chdir(submitted.directory)
    code = _run(submitted, handoff, stopping)
    return _conclude(handoff, submitted.job.name, code, received)


def _run(submitted: SubmittedJob, handoff: Handoff, stopping: Callable[[], list[int]]) -> int:
    """Start the command once no earlier attempt is alive, and wait for its end; send it TERM while
    `stopping`."""
    job = submitted.job
    with open(handoff.lock(job.name), "a") as lock, open(job.log, "ab") as log:
        while not try_lock_file(lock):
            if stopping():
                return -RECLAIMED
            time.sleep(EVERY_SECONDS)
        handoff.mark_started(job.name)
        try:
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **submitted.env},
                # The run inherits the lock, so that it lasts as long as the run.
                pass_fds=(lock.fileno(),),
                preexec_fn=_prepare_child,
            )
        except OSError as error:
            log.write(f"{ERROR_PREFIX}cannot start {job.command[0]}: {error.strerror}\n".encode())
            return 127
        due = math.inf
        while True:
            try:
                return process.wait(EVERY_SECONDS)
            except subprocess.TimeoutExpired:
                if received := stopping():
                    terminate_tree(process.pid)
                if TIME_LIMIT in received:
                    due = min(due, time.monotonic() + GRACE_SECONDS)
                if time.monotonic() > due:
                    reason = f"killed: not stopped {GRACE_SECONDS} s after the time limit"
                    log.write(f"{ERROR_PREFIX}{reason}\n".encode())
                    kill_tree(process.pid)
                    return process.wait()


def _conclude(handoff: Handoff, name: str, code: int, received: list[int]) -> int:
    """Record how a job ended, or leave it open for a retry, and return the exit code.

    75 requests the retry; 143 leaves it to the engine.
    """
    if code != 0:
        if CANCEL in received:
            code = 130
        elif TIME_LIMIT in received and code != -signal.SIGKILL:
            return RETRY
        elif received and TIME_LIMIT not in received:
            return 128 + RECLAIMED
        elif code < 0 and handoff.count_kill(name) <= RETRIES:
            return RETRY
    handoff.mark_ended(name, code)
    return 0 if code == 0 else 1


def _prepare_child() -> None:
    """Prepare a child before its command: ignore the signals that engines send to all processes.

    On Linux the child gets TERM when this process dies.
    """
    ignore_sigterm()
    for number in (CANCEL, TIME_LIMIT):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, RECLAIMED)


def _closed(pipe: IO[bytes]) -> bool:
    """Return whether the other end of a pipe, into which nothing is ever written, is closed."""
    return bool(select.select([pipe], [], [], 0)[0])


def _requeue() -> None:
    """Return this task of a SLURM array to the queue, upon which SLURM ends this process.

    SLURM_JOB_ID is no substitute: for the last task it is the id of the entire array, which would then run
    again.
    """
    signal.signal(RECLAIMED, signal.SIG_DFL)
    task = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    subprocess.run(["scontrol", "requeue", task], check=True, timeout=60)
    time.sleep(60)


if __name__ == "__main__":
    under_slurm = sys.argv[3:] == ["--requeue"]
    status = main(Path(sys.argv[1]), int(sys.argv[2]), parent=None if under_slurm else sys.stdin.buffer)
    if status == RETRY and under_slurm:
        _requeue()
    sys.exit(status)
