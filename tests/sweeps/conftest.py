"""A study of two arms and two seeds whose runs are stubs that write real records."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.records.record import Record
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.study import load_study

STUB = Path(__file__).parent / "stub.py"
STUDY = """# Two arms, two seeds.
name = "tiny"
base = "digits"
[axes]
seed = [0, 1]
"method.name" = ["flow", "repa"]
[set]
"train.steps" = 6
"train.batch_size" = 8
[target]
metric = "fd:local"
value = 12.0
"""
SMALL_RUNS = """"backbone.size" = "pico"
"train.steps" = 2
"train.batch_size" = 4
"train.warmup_steps" = 0
"eval.samples" = 4
"eval.sampler_steps" = 1
"""
"""The table `[set]` of a study whose runs take a second."""


def stub_command(spec: Path, directory: Path) -> tuple[str, ...]:
    return (sys.executable, str(STUB), str(spec), str(directory))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("STUB", raising=False)
    monkeypatch.setattr("sweeps.launch.runner.run_command", stub_command)
    (tmp_path / "tiny.toml").write_text(STUDY)
    return tmp_path / "tiny.toml"


def planned_runs(study: Path) -> list[PlannedRun]:
    return make_plan(load_study(str(study))).runs


def starts(directory: Path) -> Counter[str]:
    return Counter({r.id: len(r.environment) for r in map(Record, directory.glob("????????????"))})


RATE = {"low": 1e-3, "high": 1e-2, "log": True}


TABLE: dict[str, Any] = {
    "name": "t",
    "base": "digits",
    "baseline": "flow",
    "axes": {"method.name": ["flow", "self_flow"]},
    "seeds": {"audit": 3, "tuning": [100, 101]},
    "set": {"backbone.size": "2x64x4", "train.batch_size": 8, "train.steps": 40},
    "tune": {"trials": 4, "startup": 2, "space": {"train.learning_rate": RATE}},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a race of one claim, which is true by far."""
    from tests.sweeps.races import write_file

    return write_file(tmp_path, "repa")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the file and the runs of a finished race."""
    from tests.sweeps.races import Trainer, raced, write_file

    folder = tmp_path_factory.mktemp("race")
    raced(write_file(folder, "repa"), Trainer(folder / "runs"))
    return folder


@pytest.fixture
def race(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return the file and the folder of a copy of that race."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "claim.toml", tmp_path / "runs"
