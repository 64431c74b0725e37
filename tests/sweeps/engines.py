"""Helpers of the SLURM and Ray tests: small jobs, and a study that is disturbed and compared bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.records.record import Record
from sweeps.launch.base import Event, Job, Launcher
from sweeps.launch.process_tree import process_tree
from tests.support.runs import TINY, everything

STUDY = """name = "disturbed"
base = "digits"
[axes]
seed = [0, 1]
"method.name" = ["flow", "self_flow"]
"""
RACE = """
[study]
name = "race"
base = "digits"
[study.axes]
"method.name" = ["flow", "layersync"]
[claim]
name = "faster"
candidate = "layersync"
baseline = "flow"
metric = "fd:local"
target = 158.5
factor = 1.0
[claim.sequential]
max_pairs = 4
until = "decided"
patience = 1
"""
STEPS = 600
"""Long enough for the test to find a run before it ends."""


def job(folder: Path, name: str, code: str) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / f"{name}.log")


def drain(launcher: Launcher, patience: float = 120.0) -> list[Event]:
    events: list[Event] = []
    give_up = time.monotonic() + patience
    while launcher.active:
        assert time.monotonic() < give_up, events
        events += launcher.poll(0.05)
    return events


def until(
    condition: Callable[[], object], launcher: Launcher | None = None, patience: float = 300.0
) -> list[Event]:
    events: list[Event] = []
    give_up = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < give_up, events
        if launcher is None:
            time.sleep(0.02)
        else:
            events += launcher.poll(0.05)
    return events


def logged(folder: Path, name: str, word: str) -> bool:
    """Return whether the log of a job contains a word."""
    log = folder / f"{name}.log"
    return log.exists() and word in log.read_text()


def sweep(study: Path, out: Path, *flags: str) -> subprocess.Popen[bytes]:
    settings = [
        word
        for setting in (*TINY, f"train.steps={STEPS}", f"eval.every={STEPS // 2}")
        for word in ("--set", setting)
    ]
    command = [
        sys.executable,
        "-m",
        "harness.cli.main",
        "sweep",
        str(study),
        "--out",
        str(out),
        *settings,
        *flags,
    ]
    # The child process keeps the file open.
    log = open(f"{out}.output", "ab")  # noqa: SIM115
    return subprocess.Popen([*command, "--no-track", "--no-report"], stdout=log, stderr=log)


def assert_race_has_the_looks_of_a_local_one(folder: Path, *flags: str) -> None:
    """Run a race with an engine, whose coordinator is killed once, and compare it with a race on this
    machine."""
    looks, ends = [], []
    for name, launch in (("local", ("--slots", "2", "--threads", "1")), ("engine", flags)):
        own = folder / name
        own.mkdir()
        (own / "claim.toml").write_text(RACE)
        if name == "engine":
            coordinator = race(own, *launch)
            until(lambda own=own: list((own / "runs").glob("*/done")), patience=300)
            kill(coordinator.pid)
            coordinator.wait()
        assert race(own, *launch).wait(600) == 0, (own / "output").read_text()
        looks.append((own / "runs" / "looks.jsonl").read_bytes())
        records = map(Record, sorted((own / "runs").glob("????????????")))
        ends.append([(record.id, record.early_end, record.last_step) for record in records])
    assert looks[0] == looks[1] and looks[0].count(b"\n") >= 1 and ends[0] == ends[1]
    assert any(end is not None for _, end, _ in ends[0])
    assert (folder / "engine" / "runs" / "launch" / "1.json").exists()


def race(folder: Path, *flags: str) -> subprocess.Popen[bytes]:
    settings = [word for setting in (*TINY, "eval.every=3") for word in ("--set", setting)]
    words = [str(folder / "claim.toml"), "--out", str(folder / "runs"), *settings, *flags]
    # The child process keeps the file open.
    log = open(folder / "output", "ab")  # noqa: SIM115
    command = [sys.executable, "-m", "harness.cli.main", "race", *words, "--no-track", "--no-report"]
    return subprocess.Popen(command, stdout=log, stderr=log)


def trainers(out: Path) -> Iterator[tuple[int, str]]:
    """Yield the process and the id of every run of a study, found by the folder on its command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        # The process has just ended.
        except OSError:
            continue
        if str(out) in words and "run" in words:
            yield int(folder.name), Path(words[words.index("run") + 1]).stem


def at_work(out: Path, run: str, step: int) -> int | None:
    """Return the process of a run that has passed a step and not finished; else None."""
    found = [pid for pid, name in trainers(out) if name == run]
    return found[0] if found and step <= Record(out / run).last_step < STEPS else None


def planned(out: Path) -> list[str]:
    return [run["id"] for run in json.loads((out / "plan.json").read_text())["runs"]]


def assert_same_bits(out: Path, calm: Path) -> None:
    """Assert that every run is done, once, with the record and the checkpoints of the undisturbed study."""
    assert planned(out) == planned(calm) and len(set(planned(out))) == 4
    for run in planned(out):
        a, b = Record(out / run), Record(calm / run)
        assert a.status == b.status == "done" and everything(a) == everything(b), run
        names = sorted(file.name for file in (a.path / "checkpoints").iterdir())
        for name in names:
            assert (a.path / "checkpoints" / name).read_bytes() == (
                b.path / "checkpoints" / name
            ).read_bytes()


def starts(out: Path, run: str) -> int:
    return len(Record(out / run).environment)


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, 9)


def listening() -> list[str]:
    """Return the TCP addresses, in hex, on which this process and its descendants listen."""
    own = {
        os.readlink(file)
        for pid in process_tree(os.getpid())
        for file in Path(f"/proc/{pid}/fd").iterdir()
        if file.is_symlink()
    }
    tables = [Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]


def gone(pid: int, patience: float = 30.0) -> bool:
    """Return whether a process ends in time, as a zombie or completely, because a kill takes a moment."""
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
    return False


TRAINS = """if True:
    import signal, sys
    def stop(number, _):
        signal.signal(number, before)
        print("checkpoint", flush=True)
        sys.exit(130)
    before = signal.signal(signal.SIGTERM, stop)
    print("here", flush=True)
    while True: signal.pause()
"""
"""A job that handles TERM like a run in training: once, and then restores the previous handler."""
