"""The node process without an engine: signals become requests to stop, and two attempts never overlap."""

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
from sweeps.launch.handoff import Handoff
from sweeps.launch.retries import RETRIES, RETRY
from sweeps.launch.runner import under_torchrun
from tests.support.runs import TINY, everything
from tests.support.waiting import wait_until
from tests.sweeps.engines import TRAINS, gone


@pytest.fixture
def handoff(tmp_path: Path) -> Handoff:
    (tmp_path / "launch").mkdir()
    return Handoff(tmp_path / "launch", {"WORD": "yes"})


def post(handoff: Handoff, code: str, name: str = "a") -> Path:
    job = Job(name, (sys.executable, "-c", code), handoff.folder / f"{name}.log")
    return handoff.table(handoff.write_submission([job]))


def node(table: Path, *flags: str, index: int = 0) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sweeps.launch.retries", str(table), str(index), *flags]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def until(process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    wait_until(lambda: condition() or process.poll() is not None)
    assert condition()


def log(handoff: Handoff) -> str:
    file = handoff.folder / "a.log"
    return file.read_text() if file.exists() else ""


def test_retries_records_output_and_exit_code(handoff: Handoff) -> None:
    assert node(post(handoff, "import os; print(os.environ['WORD'])")).wait() == 0
    assert handoff.exit_code("a") == 0 and log(handoff) == "yes\n"
    assert node(post(handoff, "import sys; sys.exit(2)")).wait() == 1
    assert handoff.exit_code("a") == 2 and handoff.submissions() == {1: ["a"], 2: ["a"]}


def test_retries_does_not_rerun_an_ended_job(handoff: Handoff) -> None:
    table = post(handoff, "print('once')")
    assert [node(table).wait() for _ in range(2)] == [0, 0] and log(handoff) == "once\n"


def test_retries_records_failure_when_the_command_cannot_start(handoff: Handoff) -> None:
    job = Job("a", (str(handoff.folder / "nothing"),), handoff.folder / "a.log")
    assert node(handoff.table(handoff.write_submission([job]))).wait() == 1
    assert handoff.exit_code("a") == 127 and "No such file" in log(handoff)


def test_killed_job_is_retried_at_most_three_times(handoff: Handoff) -> None:
    table = post(handoff, "import os; os.kill(os.getpid(), 9)")
    assert [node(table).wait() for _ in range(RETRIES + 1)] == [RETRY] * RETRIES + [1]
    assert handoff.exit_code("a") == -signal.SIGKILL


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [(signal.SIGUSR1, 1, 130), (signal.SIGUSR2, RETRY, None), (signal.SIGTERM, 128 + 15, None)],
)
def test_retries_turns_a_signal_into_a_checkpoint(
    handoff: Handoff, number: int, status: int, code: int | None
) -> None:
    process = node(post(handoff, TRAINS))
    until(process, lambda: "here\n" in log(handoff))
    process.send_signal(number)
    assert process.wait() == status and log(handoff) == "here\ncheckpoint\n"
    assert (handoff.exit_code("a") if "a" in handoff.outcomes()[1] else None) == code


def test_signal_to_all_processes_is_harmless(handoff: Handoff) -> None:
    """SLURM does this before a preemption: the run gets TERM from the engine and from its node."""
    slow = TRAINS.replace("sys.exit(130)", "import time; time.sleep(0.5); sys.exit(130)")
    process = node(post(handoff, f"import os; print(os.getpid(), flush=True)\n{slow}"))
    until(process, lambda: "here\n" in log(handoff))
    for pid in (process.pid, int(log(handoff).split()[0])):
        os.kill(pid, signal.SIGTERM)
    assert process.wait() == 143 and log(handoff).endswith("here\ncheckpoint\n")


def test_retries_repeats_the_request_until_the_run_handles_it(handoff: Handoff) -> None:
    process = node(post(handoff, "print('up', flush=True); import time; time.sleep(0.5)\n" + TRAINS))
    until(process, lambda: "up" in log(handoff))
    process.send_signal(signal.SIGUSR2)
    assert process.wait() == RETRY and log(handoff).endswith("checkpoint\n")


def test_run_is_asked_to_stop_when_the_parent_dies(handoff: Handoff) -> None:
    process = node(post(handoff, TRAINS))
    until(process, lambda: "here\n" in log(handoff))
    process.stdin.close()
    assert process.wait() == 143 and log(handoff).endswith("checkpoint\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a child when its parent dies")
def test_second_attempt_waits_for_the_run_of_a_killed_node(handoff: Handoff) -> None:
    slow = TRAINS.replace(
        "sys.exit(130)", "import time; time.sleep(0.5); print('gone', flush=True); sys.exit(130)"
    )
    table = post(handoff, slow)
    first = node(table)
    until(first, lambda: "here\n" in log(handoff))
    first.kill()
    second = node(table)
    until(second, lambda: log(handoff).count("here\n") == 2)
    assert log(handoff) == "here\ncheckpoint\ngone\nhere\n"
    second.send_signal(signal.SIGUSR1)
    assert second.wait() == 1


def test_waiting_node_can_be_stopped(handoff: Handoff) -> None:
    table = post(handoff, TRAINS)
    first = node(table)
    until(first, lambda: "here\n" in log(handoff))
    waiting = node(table)
    waiting.stdin.close()
    assert waiting.wait() == 143 and log(handoff) == "here\n"
    first.send_signal(signal.SIGUSR1)
    assert first.wait() == 1


def test_retries_signals_descendants_of_the_command(handoff: Handoff) -> None:
    """Under torchrun the ranks write the checkpoint; their parent takes no TERM."""
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.run([sys.executable, '-c', {TRAINS!r}], start_new_session=True)\n"
        "sys.exit(child.returncode)"
    )
    process = node(post(handoff, parent))
    until(process, lambda: "here\n" in log(handoff))
    process.send_signal(signal.SIGUSR1)
    assert process.wait() == 1 and log(handoff) == "here\ncheckpoint\n" and handoff.exit_code("a") == 130


HURRIED = """if True:
    import sys
    from pathlib import Path
    from sweeps.launch import retries
    retries.GRACE_SECONDS = 0.2
    sys.exit(retries.main(Path(sys.argv[1]), 0))
"""
BUSY = """if True:
    import os, subprocess, sys
    stays = "import signal, time; print('rank', flush=True); time.sleep(600)"
    rank = subprocess.Popen([sys.executable, '-c', stays], start_new_session=True)
    print(os.getpid(), rank.pid, flush=True)
    rank.wait()
"""
"""A run in a long evaluation: neither it nor its rank stops on TERM."""


@pytest.mark.slow
def test_run_that_exceeds_the_grace_period_is_killed_and_retried(handoff: Handoff) -> None:
    """SLURM would end the job as failed. A job that never finishes is not retried forever."""
    table = post(handoff, BUSY)
    for attempt, status in enumerate([RETRY] * RETRIES + [1], start=1):
        process = subprocess.Popen([sys.executable, "-c", HURRIED, str(table)])
        until(process, lambda number=attempt: log(handoff).count("rank\n") == number)
        process.send_signal(signal.SIGUSR2)
        assert process.wait() == status
    lines = log(handoff).splitlines()
    assert (
        lines[-1] == "error: killed: not stopped 0.2 s after the time limit"
        and handoff.exit_code("a") == -signal.SIGKILL
    )
    assert all(gone(int(pid)) for line in lines for pid in line.split() if pid.isdecimal())


@pytest.mark.slow
def test_two_ranks_stop_together_and_resume_to_the_same_bits(handoff: Handoff, tmp_path: Path) -> None:
    """A run of two ranks under torchrun, which reaches its time limit twice."""
    words = [word for setting in (*TINY, "train.steps=120", "eval.every=60") for word in ("--set", setting)]

    def command(out: str) -> tuple[str, ...]:
        flags = ("--out", str(tmp_path / out), "--no-track", "--quiet")
        return under_torchrun((sys.executable, "-m", "harness.cli.main", "run", "digits", *words, *flags), 2)

    for name in ("calm", "wild"):
        table = handoff.table(
            handoff.write_submission([Job(name, command(name), handoff.folder / f"{name}.log")])
        )
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
            assert process.wait() == RETRY
        assert node(table).wait() == 0, (handoff.folder / f"{name}.log").read_text()
    (calm,), (wild,) = (find_records(tmp_path / name) for name in ("calm", "wild"))
    assert len(wild.environment) == 3 and everything(wild) == everything(calm)
