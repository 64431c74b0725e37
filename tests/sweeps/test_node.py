"""What runs on a node, without an engine: every signal is passed on as one wish to stop, and two attempts
never overlap."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.records.record import find_records
from sweeps.launch.base import Job
from sweeps.launch.handoff import Board
from sweeps.launch.node import AGAIN, RETRIES
from sweeps.launch.runner import under_torchrun
from tests.support.runs import TINY, everything
from tests.sweeps.test_local import TRAINS, gone


@pytest.fixture
def board(tmp_path: Path) -> Board:
    (tmp_path / "launch").mkdir()
    return Board(tmp_path / "launch", {"WORD": "yes"})


def post(board: Board, code: str, name: str = "a") -> Path:
    job = Job(name, (sys.executable, "-c", code), board.folder / f"{name}.log")
    return board.table(board.post([job]))


def node(table: Path, *flags: str, index: int = 0) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sweeps.launch.node", str(table), str(index), *flags]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def until(process: subprocess.Popen[bytes], true: Callable[[], bool]) -> None:
    while not true():
        assert process.poll() is None


def log(board: Board) -> str:
    file = board.folder / "a.log"
    return file.read_text() if file.exists() else ""


def test_what_a_job_says_and_how_it_ends_is_on_the_board(board: Board) -> None:
    assert node(post(board, "import os; print(os.environ['WORD'])")).wait() == 0
    assert board.code("a") == 0 and log(board) == "yes\n"
    assert node(post(board, "import sys; sys.exit(2)")).wait() == 1
    assert board.code("a") == 2 and board.posted() == {1: ["a"], 2: ["a"]}


def test_a_job_that_has_ended_is_not_run_again(board: Board) -> None:
    table = post(board, "print('once')")
    assert [node(table).wait() for _ in range(2)] == [0, 0] and log(board) == "once\n"


def test_a_command_that_cannot_start_has_failed(board: Board) -> None:
    job = Job("a", (str(board.folder / "nothing"),), board.folder / "a.log")
    assert node(board.table(board.post([job]))).wait() == 1
    assert board.code("a") == 127 and "No such file" in log(board)


def test_a_job_that_is_killed_runs_again_and_no_more_than_thrice(board: Board) -> None:
    table = post(board, "import os; os.kill(os.getpid(), 9)")
    assert [node(table).wait() for _ in range(RETRIES + 1)] == [AGAIN] * RETRIES + [1]
    assert board.code("a") == -signal.SIGKILL


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [(signal.SIGUSR1, 1, 130), (signal.SIGUSR2, AGAIN, None), (signal.SIGTERM, 128 + 15, None)],
)
def test_a_signal_becomes_a_checkpoint(board: Board, number: int, status: int, code: int | None) -> None:
    process = node(post(board, TRAINS))
    until(process, lambda: "here\n" in log(board))
    process.send_signal(number)
    assert process.wait() == status and log(board) == "here\ncheckpoint\n"
    assert (board.code("a") if "a" in board.seen()[1] else None) == code


def test_a_signal_sent_to_everybody_at_once_does_no_harm(board: Board) -> None:
    """As SLURM does before a preemption: the run hears it from the engine and from its node."""
    slow = TRAINS.replace("sys.exit(130)", "import time; time.sleep(1); sys.exit(130)")
    process = node(post(board, f"import os; print(os.getpid(), flush=True)\n{slow}"))
    until(process, lambda: "here\n" in log(board))
    for pid in (process.pid, int(log(board).split()[0])):
        os.kill(pid, signal.SIGTERM)
    assert process.wait() == 143 and log(board).endswith("here\ncheckpoint\n")


def test_a_run_that_has_not_begun_to_listen_is_asked_until_it_does(board: Board) -> None:
    process = node(post(board, "print('up', flush=True); import time; time.sleep(1)\n" + TRAINS))
    until(process, lambda: "up" in log(board))
    process.send_signal(signal.SIGUSR2)
    assert process.wait() == AGAIN and log(board).endswith("checkpoint\n")


def test_when_its_parent_dies_the_run_is_told(board: Board) -> None:
    process = node(post(board, TRAINS))
    until(process, lambda: "here\n" in log(board))
    process.stdin.close()
    assert process.wait() == 143 and log(board).endswith("checkpoint\n")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_a_second_attempt_waits_for_what_a_killed_node_left(board: Board) -> None:
    slow = TRAINS.replace(
        "sys.exit(130)", "import time; time.sleep(1); print('gone', flush=True); sys.exit(130)"
    )
    table = post(board, slow)
    first = node(table)
    until(first, lambda: "here\n" in log(board))
    first.kill()
    second = node(table)
    until(second, lambda: log(board).count("here\n") == 2)
    assert log(board) == "here\ncheckpoint\ngone\nhere\n"
    second.send_signal(signal.SIGUSR1)
    assert second.wait() == 1


def test_a_node_that_waits_can_be_stopped(board: Board) -> None:
    table = post(board, TRAINS)
    first = node(table)
    until(first, lambda: "here\n" in log(board))
    waiting = node(table)
    waiting.stdin.close()
    assert waiting.wait() == 143 and log(board) == "here\n"
    first.send_signal(signal.SIGUSR1)
    assert first.wait() == 1


def test_a_process_below_the_command_is_told_too(board: Board) -> None:
    """Under torchrun the ranks write the checkpoint; their parent takes no TERM."""
    parent = (
        "import subprocess, sys; "
        f"child = subprocess.run([sys.executable, '-c', {TRAINS!r}], start_new_session=True); "
        "sys.exit(child.returncode)"
    )
    process = node(post(board, parent))
    until(process, lambda: "here\n" in log(board))
    process.send_signal(signal.SIGUSR1)
    assert process.wait() == 1 and log(board) == "here\ncheckpoint\n" and board.code("a") == 130


HURRIED = """if True:
    import sys
    from pathlib import Path
    from sweeps.launch import node
    node.GRACE_SECONDS = 0.5
    sys.exit(node.main(Path(sys.argv[1]), 0))
"""
BUSY = """if True:
    import os, subprocess, sys
    stays = "import signal, time; print('rank', flush=True); time.sleep(600)"
    rank = subprocess.Popen([sys.executable, '-c', stays], start_new_session=True)
    print(os.getpid(), rank.pid, flush=True)
    rank.wait()
"""
"""A run in a long evaluation: it hears TERM and does not stop, nor does the rank below it."""


def test_a_run_that_does_not_stop_in_time_is_killed_and_runs_again(board: Board) -> None:
    """SLURM would end the job as failed. One that never gets through is not tried for ever."""
    table = post(board, BUSY)
    for attempt, status in enumerate([AGAIN] * RETRIES + [1], start=1):
        process = subprocess.Popen([sys.executable, "-c", HURRIED, str(table)])
        until(process, lambda number=attempt: log(board).count("rank\n") == number)
        process.send_signal(signal.SIGUSR2)
        assert process.wait() == status
    said = log(board).splitlines()
    assert (
        said[-1] == "killed: not stopped 0.5 s after its time was up" and board.code("a") == -signal.SIGKILL
    )
    assert all(gone(int(pid)) for line in said for pid in line.split() if pid.isdecimal())


@pytest.mark.slow
def test_two_ranks_stop_together_and_continue_to_the_same_bits(board: Board, tmp_path: Path) -> None:
    """A run of two processes under torchrun, told twice that its time is up."""
    words = [word for setting in (*TINY, "train.steps=120", "eval.every=60") for word in ("--set", setting)]

    def command(out: str) -> tuple[str, ...]:
        flags = ("--out", str(tmp_path / out), "--no-track", "--quiet")
        return under_torchrun((sys.executable, "-m", "harness.cli.main", "run", "digits", *words, *flags), 2)

    for name in ("calm", "wild"):
        table = board.table(board.post([Job(name, command(name), board.folder / f"{name}.log")]))
        for step in (20, 60) if name == "wild" else ():
            process = node(table)
            until(
                process,
                lambda step=step: (
                    any(r.last_step > step for r in find_records(tmp_path / "wild"))
                    if (tmp_path / "wild").exists()
                    else False
                ),
            )
            process.send_signal(signal.SIGUSR2)
            assert process.wait() == AGAIN
        assert node(table).wait() == 0, (board.folder / f"{name}.log").read_text()
    (calm,), (wild,) = (find_records(tmp_path / name) for name in ("calm", "wild"))
    assert len(wild.environment) == 3 and everything(wild) == everything(calm)
