"""A study whose processes are killed at random: no run is lost or repeated, and the bits are unchanged."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from harness.records.record import Record
from sweeps.plan.status import read_status
from tests.support.runs import everything
from tests.support.studies import finish_study, start_study

KILLS, EVERY = 20, 3.0
STUDY = """name = "chaos"
base = "digits"
[axes]
seed = [0, 1, 2, 3, 4, 5, 6, 7]
"method.name" = ["flow", "self_flow", "layersync"]
"""


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
    finish_study(partial(start_study, study, calm), calm, tries=1)
    start = partial(start_study, study, wild)
    coordinator, killed, starts = start(), [], 1
    while len(killed) < KILLS and starts <= 2 * KILLS:
        try:
            if coordinator.wait(EVERY) == 0:
                break
            coordinator, starts = start(), starts + 1
        except subprocess.TimeoutExpired:
            victims = sorted(at_work(wild))
            # A single process is a coordinator that has just started.
            if len(victims) > 1:
                victim = dice.choice(victims)
                os.kill(victim, signal.SIGKILL)
                killed.append(victim == coordinator.pid)
    finish_study(start, wild, coordinator)
    assert {True, False} <= set(killed)
    runs = json.loads((wild / "plan.json").read_text())["runs"]
    assert read_status(wild)["counts"] == {"done": 24} and len({run["id"] for run in runs}) == 24
    assert sorted(p.name for p in wild.iterdir() if p.is_dir() and (p / "spec.toml").exists()) == sorted(
        run["id"] for run in runs
    )
    for run in runs:
        assert everything(Record(wild / run["id"])) == everything(Record(calm / run["id"])), run
