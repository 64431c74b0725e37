"""A race whose coordinator is killed at random: the same looks and the same decision."""

from __future__ import annotations

import json
import random
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.support.studies import finish_study, start_study

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
def test_race_takes_the_same_looks_after_random_kills(tmp_path: Path) -> None:
    calm, wild, dice = tmp_path / "calm", tmp_path / "wild", random.Random(20261130)
    for folder in (calm, wild):
        folder.mkdir()
        (folder / "claim.toml").write_text(RACE)

    def race(folder: Path) -> subprocess.Popen[bytes]:
        return start_study(folder / "claim.toml", folder / "runs", "race")

    finish_study(partial(race, calm), calm / "runs", tries=1)
    coordinator = race(wild)
    for _ in range(6):
        try:
            if coordinator.wait(dice.uniform(2, 8)) == 0:
                break
        except subprocess.TimeoutExpired:
            coordinator.kill()
            coordinator.wait()
        coordinator = race(wild)
    finish_study(partial(race, wild), wild / "runs", coordinator)
    looks = (calm / "runs" / "looks.jsonl").read_bytes()
    assert looks.count(b"\n") > 2 and (wild / "runs" / "looks.jsonl").read_bytes() == looks
    register = json.loads((wild / "register.jsonl").read_text())
    assert register["hash"] == json.loads((calm / "register.jsonl").read_text())["hash"]
