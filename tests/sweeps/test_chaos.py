"""A study whose processes are killed at random: no run is lost or repeated, and the bits are unchanged."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.records.record import Record
from sweeps.plan.status import read_status
from tests.support.runs import TINY, everything

KILLS, EVERY = 20, 3.0
STUDY = """name = "chaos"
base = "digits"
[axes]
seed = [0, 1, 2, 3, 4, 5, 6, 7]
"method.name" = ["flow", "self_flow", "layersync"]
"""


def sweep(study: Path, out: Path, name: str = "sweep") -> subprocess.Popen[bytes]:
    settings = [word for setting in TINY for word in ("--set", setting)]
    flags = ["--out", str(out), "--slots", "2", "--no-track", "--no-report", "--json", *settings]
    command = [sys.executable, "-m", "harness.cli.main", name, str(study), *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def at_work(out: Path) -> Iterator[int]:
    """Yield every process of a study, coordinator and workers, found by the folder on its command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        # The process has just ended.
        except OSError:
            continue
        if str(out).encode() in words and b"harness.cli.main" in words:
            yield int(folder.name)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_study_keeps_its_bits_after_twenty_random_kills(tmp_path: Path) -> None:
    study, calm, wild, dice = (
        tmp_path / "chaos.toml",
        tmp_path / "calm",
        tmp_path / "wild",
        random.Random(20261121),
    )
    study.write_text(STUDY)
    assert sweep(study, calm).wait(1200) == 0
    coordinator, killed = sweep(study, wild), []
    while len(killed) < KILLS:
        try:
            if coordinator.wait(EVERY) == 0:
                break
            coordinator = sweep(study, wild)
        except subprocess.TimeoutExpired:
            victims = sorted(at_work(wild))
            # A single process is a coordinator that has just started.
            if len(victims) > 1:
                victim = dice.choice(victims)
                os.kill(victim, signal.SIGKILL)
                killed.append(victim == coordinator.pid)
    # A killed worker is a failure of that command.
    while coordinator.wait(1200) != 0:
        coordinator = sweep(study, wild)
    assert {True, False} <= set(killed)
    runs = json.loads((wild / "plan.json").read_text())["runs"]
    assert read_status(wild)["counts"] == {"done": 24} and len({run["id"] for run in runs}) == 24
    assert sorted(p.name for p in wild.iterdir() if p.is_dir() and (p / "spec.toml").exists()) == sorted(
        run["id"] for run in runs
    )
    for run in runs:
        assert everything(Record(wild / run["id"])) == everything(Record(calm / run["id"])), run


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
target = 156.0
factor = 1.0
[claim.sequential]
max_pairs = 6
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_race_takes_the_same_looks_after_random_kills(tmp_path: Path) -> None:
    calm, wild, dice = tmp_path / "calm", tmp_path / "wild", random.Random(20261130)
    for folder in (calm, wild):
        folder.mkdir()
        (folder / "claim.toml").write_text(RACE)

    def race(folder: Path) -> subprocess.Popen[bytes]:
        return sweep(folder / "claim.toml", folder / "runs", "race")

    assert race(calm).wait(1200) == 0
    coordinator = race(wild)
    for _ in range(8):
        try:
            if coordinator.wait(dice.uniform(2, 8)) == 0:
                break
        except subprocess.TimeoutExpired:
            coordinator.kill()
            coordinator.wait()
        coordinator = race(wild)
    while coordinator.wait(1200) != 0:
        coordinator = race(wild)
    looks = (calm / "runs" / "looks.jsonl").read_bytes()
    assert looks.count(b"\n") > 2 and (wild / "runs" / "looks.jsonl").read_bytes() == looks
    register = json.loads((wild / "register.jsonl").read_text())
    assert register["hash"] == json.loads((calm / "register.jsonl").read_text())["hash"]
