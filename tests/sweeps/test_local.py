"""The local launcher with real processes: order, slots, failures, signals, and cleanup."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records.checkpoint_files import checkpoints, step_of
from harness.records.record import Record, find_records
from sweeps.launch.base import Event, Finished, Job, Started, stop_on_signals
from sweeps.launch.local import LocalLauncher
from sweeps.launch.process_tree import process_tree
from sweeps.launch.runner import under_torchrun
from tests.support.runs import TINY
from tests.support.waiting import wait_until
from tests.sweeps.engines import TRAINS, gone


def job(folder: Path, name: str, code: str) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / f"{name}.log")


def drain(launcher: LocalLauncher) -> list[Event]:
    events = []
    while launcher.active:
        events += launcher.poll(0.02)
    return events


def until(launcher: LocalLauncher, log: Path, word: str) -> list[Event]:
    """Poll until the log of a process contains a word."""
    events = []
    while not (log.exists() and word in log.read_text()):
        assert launcher.active, log.read_text()
        events += launcher.poll(0.02)
    return events


WAITS = "import signal; print('here', flush=True)\nwhile True: signal.pause()"
STOPS = (
    "import signal, sys\n"
    "for n in (2, 15): signal.signal(n, lambda n, _: (print(f'got {n}', flush=True), sys.exit(130)))\n"
) + WAITS
IGNORES = "import signal; signal.signal(2, lambda n, _: print('not now', flush=True))\n" + WAITS


def test_jobs_start_in_order_and_continue_after_a_failure(tmp_path: Path) -> None:
    codes = {
        "a": "print('hello')",
        "b": "import sys; sys.exit('broken')",
        "c": "import os; os.kill(os.getpid(), 9)",
    }
    with LocalLauncher(1) as launcher:
        for name, code in codes.items():
            launcher.submit(job(tmp_path, name, code))
        events = drain(launcher)
    ends = {"a": 0, "b": 1, "c": -9}
    assert events[0] == Started("a")
    assert [e for e in events if isinstance(e, Started)] == [Started(name) for name in codes]
    assert [e for e in events if isinstance(e, Finished)] == [
        Finished(name, end) for name, end in ends.items()
    ]
    assert (tmp_path / "a.log").read_text() == "hello\n" and (tmp_path / "b.log").read_text() == "broken\n"


def test_job_starts_at_its_submission_if_a_slot_is_free(tmp_path: Path) -> None:
    with LocalLauncher(1) as launcher:
        launcher.submit(job(tmp_path, "a", "print('hello')"))
        launcher.submit(job(tmp_path, "b", "pass"))
        # Before any poll.
        assert (tmp_path / "a.log").exists() and not (tmp_path / "b.log").exists()
        assert drain(launcher)[0] == Started("a")


def test_log_keeps_earlier_attempts(tmp_path: Path) -> None:
    for _ in range(2):
        with LocalLauncher(1) as launcher:
            launcher.submit(job(tmp_path, "a", "print('hello')"))
            drain(launcher)
    assert (tmp_path / "a.log").read_text() == "hello\nhello\n"


def test_launcher_runs_at_most_one_job_per_slot(tmp_path: Path) -> None:
    """Each job counts the running ones; a third job starts only after one of two has ended."""
    code = f"""if True:
        import os, pathlib
        here = pathlib.Path({str(tmp_path)!r}) / f"running-{{os.getpid()}}"
        here.touch()
        others = len(list(here.parent.glob("running-*")))
        print(others, flush=True)
        for _ in range(3_000_000): pass
        here.unlink()
    """
    with LocalLauncher(2) as launcher:
        for k in range(6):
            launcher.submit(job(tmp_path, str(k), code))
        running = most = 0
        for event in drain(launcher):
            running += 1 if isinstance(event, Started) else -1
            most = max(most, running)
    assert most == 2
    assert max(int((tmp_path / f"{k}.log").read_text()) for k in range(6)) <= 2


def test_slots_are_bound_to_devices_and_jobs_get_the_environment(tmp_path: Path) -> None:
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['WORD'], flush=True)\n" + WAITS
    with LocalLauncher(3, devices=["4", "7"], env={"WORD": "yes"}) as launcher:
        for name in "abc":
            launcher.submit(job(tmp_path, name, code))
        for name in "abc":
            until(launcher, tmp_path / f"{name}.log", "here")
    output = [(tmp_path / f"{name}.log").read_text().splitlines()[0] for name in "abc"]
    assert output == ["4 yes", "7 yes", "4 yes"]


def test_launcher_sets_no_device_when_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with LocalLauncher(1) as launcher:
        launcher.submit(job(tmp_path, "a", "import os; print('CUDA_VISIBLE_DEVICES' in os.environ)"))
        drain(launcher)
    assert (tmp_path / "a.log").read_text() == "False\n"


def test_job_fails_when_its_command_cannot_start(tmp_path: Path) -> None:
    with LocalLauncher(1) as launcher:
        launcher.submit(Job("a", (str(tmp_path / "nothing"),), tmp_path / "a.log"))
        launcher.submit(job(tmp_path, "b", "pass"))
        events = drain(launcher)
    assert events == [Finished("a", 127), Started("b"), Finished("b", 0)]
    assert "No such file" in (tmp_path / "a.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cancel_forwards_the_signal_and_starts_no_more_jobs(tmp_path: Path, number: int) -> None:
    with LocalLauncher(2) as launcher:
        for name in "abc":
            launcher.submit(job(tmp_path, name, STOPS))
        for name in "ab":
            until(launcher, tmp_path / f"{name}.log", "here")
        launcher.cancel(number)
        events = drain(launcher)
    assert sorted(events, key=str) == [Finished("a", 130), Finished("b", 130)]
    assert (tmp_path / "a.log").read_text() == f"here\ngot {int(number)}\n"
    assert not (tmp_path / "c.log").exists() and launcher.stopped_by == number


def test_second_cancel_kills_jobs(tmp_path: Path) -> None:
    with LocalLauncher(1) as launcher:
        launcher.submit(job(tmp_path, "a", IGNORES))
        until(launcher, tmp_path / "a.log", "here")
        launcher.cancel()
        until(launcher, tmp_path / "a.log", "not now")
        launcher.cancel()
        assert drain(launcher) == [Finished("a", -signal.SIGKILL)]


def test_launcher_exit_ends_all_processes_and_their_children(tmp_path: Path) -> None:
    parent = "import subprocess, sys, os\n" + (
        f"child = subprocess.Popen([sys.executable, '-c', {WAITS!r}], stdout=subprocess.DEVNULL)\n"
        "print(os.getpid(), child.pid, flush=True)\n"
    )
    with pytest.raises(ZeroDivisionError), LocalLauncher(1) as launcher:
        launcher.submit(job(tmp_path, "a", parent + WAITS))
        until(launcher, tmp_path / "a.log", "here")
        raise ZeroDivisionError
    pids = [int(word) for word in (tmp_path / "a.log").read_text().splitlines()[0].split()]
    assert all(gone(pid) for pid in pids)


PARENT = """if True:
    import os, subprocess, sys
    rank = subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)
    print(os.getpid(), rank.pid, flush=True)
    sys.exit(rank.wait())
"""
"""A parent like torchrun, whose children lead their own sessions."""


def ranks(folder: Path, code: str) -> Job:
    return Job("a", (sys.executable, "-c", PARENT, code), folder / "a.log", ranks=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cancel_signals_every_rank(tmp_path: Path, number: int) -> None:
    """Their parent gets no signal; a rank without a handler is signalled again until it has one."""
    slow = "print('up', flush=True)\nimport time; time.sleep(1)\n" + TRAINS
    with LocalLauncher(1) as launcher:
        launcher.submit(ranks(tmp_path, slow))
        until(launcher, tmp_path / "a.log", "up")
        launcher.cancel(number)
        assert drain(launcher) == [Finished("a", 130)]
    assert (tmp_path / "a.log").read_text().endswith("here\ncheckpoint\n")


@pytest.mark.parametrize("twice", [True, False])
def test_launcher_exit_ends_every_rank(tmp_path: Path, twice: bool) -> None:
    """Both a second cancel and leaving the context end the ranks."""
    with LocalLauncher(1) as launcher:
        launcher.submit(ranks(tmp_path, "import signal; signal.signal(15, lambda *_: None)\n" + WAITS))
        until(launcher, tmp_path / "a.log", "here")
        launcher.cancel()
        if twice:
            launcher.cancel()
            assert drain(launcher) == [Finished("a", -signal.SIGKILL)]
    assert all(gone(int(pid)) for pid in (tmp_path / "a.log").read_text().splitlines()[0].split())


@pytest.mark.slow
def test_two_ranks_under_torchrun_stop_after_a_checkpoint(tmp_path: Path) -> None:
    settings = (*TINY, "train.steps=1000000", "eval.every=1000000", "train.checkpoint_every=1000000")
    words = [word for setting in settings for word in ("--set", setting)]
    flags = ("--out", str(tmp_path / "runs"), "--no-track", "--quiet")
    command = under_torchrun((sys.executable, "-m", "harness.cli.main", "run", "digits", *words, *flags), 2)
    with LocalLauncher(1) as launcher:
        launcher.submit(Job("a", command, tmp_path / "a.log", ranks=2))
        while not any(record.last_step for record in found(tmp_path / "runs")):
            launcher.poll(0.02)
        (torchrun,) = (process.pid for _, process in launcher._running.values())
        members = list(process_tree(torchrun))
        launcher.cancel(signal.SIGTERM)
        drain(launcher)
    assert len(members) >= 3 and all(map(gone, members))
    (record,) = found(tmp_path / "runs")
    (file,) = checkpoints(record.path / "checkpoints")
    assert (
        step_of(file) == record.last_step and "the same command continues" in (tmp_path / "a.log").read_text()
    )


def found(folder: Path) -> list[Record]:
    return find_records(folder) if folder.exists() else []


COORDINATOR = """if True:
    import sys
    from pathlib import Path
    from sweeps.launch.base import Job, stop_on_signals
    from sweeps.launch.local import LocalLauncher

    launcher = LocalLauncher(1)
    with launcher, stop_on_signals(launcher):
        launcher.submit(Job("a", (sys.executable, "-c", sys.argv[2]), Path(sys.argv[1])))
        while launcher.active:
            for event in launcher.poll(0.02):
                print(event, flush=True)
    print("stopped by", launcher.stopped_by)
"""


def coordinator(log: Path, code: str) -> subprocess.Popen[str]:
    """Start a process that runs one job, and return it once the job has printed `here`."""
    process = subprocess.Popen(
        [sys.executable, "-c", COORDINATOR, log, code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    here = lambda: log.exists() and "here" in log.read_text()  # noqa: E731
    wait_until(lambda: here() or process.poll() is not None)
    assert here(), process.communicate()
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_to_the_coordinator_stops_runs_at_a_checkpoint(tmp_path: Path, number: int) -> None:
    process = coordinator(tmp_path / "a.log", STOPS)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    forwarded = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
    assert output.splitlines()[-2:] == ["Finished(name='a', code=130)", f"stopped by {int(forwarded)}"], (
        errors
    )
    assert (tmp_path / "a.log").read_text() == f"here\ngot {int(forwarded)}\n"


def test_second_ctrl_c_ends_the_coordinator_immediately(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    process = coordinator(log, f"import os; print(os.getpid())\n{IGNORES}")
    process.send_signal(signal.SIGINT)
    while "not now" not in log.read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors and process.returncode != 0
    assert gone(int(log.read_text().split()[0]))


def test_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    launcher = LocalLauncher(1)
    with stop_on_signals(launcher):
        os.kill(os.getpid(), signal.SIGINT)
    assert launcher.stopped_by == signal.SIGINT
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
