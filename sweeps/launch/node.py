"""What an engine starts on a node: one job of a submission, followed to its end. `python -m sweeps.launch.node TABLE INDEX`

Three signals reach it, and each becomes a checkpoint of the run: USR1, the coordinator cancels; USR2, the time limit is near;
TERM, the engine takes the node away. The run itself starts with TERM ignored: while it trains it takes the first one as the wish
to stop, and any other, sent by an engine to all processes at once or by us again, does no harm.

A run that has not stopped a minute after its time was up (in a long evaluation, say) is killed: nothing but what it did since its
last checkpoint is lost, and the engine would end the job for good.

Exit code 75 (EX_TEMPFAIL) asks the engine to run the job again: its time was up, or it was killed (at most three times).
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

from harness.files.files import try_lock_file
from sweeps.launch.handoff import Board, Posted, read_job
from sweeps.launch.process_tree import kill, shielded, tell

CANCEL, TIME_UP, TAKEN_AWAY = signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM
AGAIN, RETRIES = 75, 3
EVERY_SECONDS = 0.2
GRACE_SECONDS = 60
"""How long a run may take to stop when its time is up; the engine leaves it 90."""
PR_SET_PDEATHSIG = 1


def main(table: Path, index: int, *, parent: IO[bytes] | None = None) -> int:
    """Run a job and return the exit code of this process. Where `parent` is a pipe, its end means that the parent died."""
    asked: list[int] = []
    for number in (CANCEL, TIME_UP, TAKEN_AWAY):
        signal.signal(number, lambda number, _: asked.append(number))

    def stopping() -> list[int]:
        if not asked and parent is not None and _closed(parent):
            asked.append(TAKEN_AWAY)
        return asked

    posted, board = read_job(table, index), Board(table.parent)
    if posted.job.name in board.seen()[1]:  # an engine that repeats itself
        return 0
    os.chdir(posted.folder)
    code = _run(posted, board, stopping)
    return _conclude(board, posted.job.name, code, asked)


def _run(posted: Posted, board: Board, stopping: Callable[[], list[int]]) -> int:
    """Start the command as soon as no earlier attempt is alive, and wait for its end; TERM goes to it while we are to stop."""
    job = posted.job
    with open(board.lock(job.name), "a") as lock, open(job.log, "ab") as log:
        while not try_lock_file(lock):
            if stopping():
                return -TAKEN_AWAY
            time.sleep(EVERY_SECONDS)
        board.begin(job.name)
        try:
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **posted.env},
                pass_fds=(lock.fileno(),),  # so that the lock lives as long as the run does
                preexec_fn=_shielded,
            )
        except OSError as error:
            log.write(f"cannot start {job.command[0]}: {error.strerror}\n".encode())
            return 127
        due = math.inf
        while True:
            try:
                return process.wait(EVERY_SECONDS)
            except subprocess.TimeoutExpired:
                if asked := stopping():
                    tell(process.pid)
                if TIME_UP in asked:
                    due = min(due, time.monotonic() + GRACE_SECONDS)
                if time.monotonic() > due:
                    log.write(f"killed: not stopped {GRACE_SECONDS} s after its time was up\n".encode())
                    kill(process.pid)
                    return process.wait()


def _conclude(board: Board, name: str, code: int, asked: list[int]) -> int:
    """Note how a job ended, or leave it open because it is to go on: by our wish (75), or as the engine decides (143)."""
    if code != 0:
        if CANCEL in asked:
            code = 130
        elif TIME_UP in asked and code != -signal.SIGKILL:
            return AGAIN
        elif asked and TIME_UP not in asked:
            return 128 + TAKEN_AWAY
        elif code < 0 and board.kill(name) <= RETRIES:
            return AGAIN
    board.end(name, code)
    return 0 if code == 0 else 1


def _shielded() -> None:
    """In the child, before the command: ignore what engines send to everyone, and be told to stop when this process dies."""
    shielded()
    for number in (CANCEL, TIME_UP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, TAKEN_AWAY)


def _closed(pipe: IO[bytes]) -> bool:
    """Whether the other end of a pipe, into which nothing is ever written, is gone."""
    return bool(select.select([pipe], [], [], 0)[0])


def _requeue() -> None:
    """Send this task of a SLURM array back to the queue; SLURM ends this process in doing so.

    SLURM_JOB_ID would not do: for the last task that is the number of the whole array, and all of it would run again.
    """
    signal.signal(TAKEN_AWAY, signal.SIG_DFL)
    task = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    subprocess.run(["scontrol", "requeue", task], check=True, timeout=60)
    time.sleep(60)


if __name__ == "__main__":
    under_slurm = sys.argv[3:] == ["--requeue"]
    status = main(Path(sys.argv[1]), int(sys.argv[2]), parent=None if under_slurm else sys.stdin.buffer)
    if status == AGAIN and under_slurm:
        _requeue()
    sys.exit(status)
