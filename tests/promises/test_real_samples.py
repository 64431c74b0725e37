"""Real samples are measured once: by processes that start together, and after kills at any instant."""

from __future__ import annotations

import json
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.data_spec import DataSpec
from harness.config.evaluation_spec import EvalSpec
from harness.data.open import open_dataset, split
from harness.evaluation import kept_features, real_side
from harness.evaluation.evaluator import Evaluator
from metrics.distances.frechet import Moments
from tests.support.forked import exit_code, fork, in_child

pytestmark = pytest.mark.usefixtures("quick_networks")
CPU = torch.device("cpu")
SPEC = EvalSpec(samples=100, metrics=("fd:local", "precision:local"))


def side(folder: Path) -> str:
    """Return all numbers of the real side as text; a pass over the samples adds a line to `passes`."""
    kept_features.VERSION = str(folder)
    run = real_side.real_features

    def logged(*given: Any) -> None:
        run(*given)
        with open(folder / "passes", "a") as log:
            log.write(f"{len(given[2])}\n")

    real_side.real_features = logged
    try:
        dataset = open_dataset(DataSpec())
        sides = split(dataset, 0.2)
        evaluator = Evaluator(SPEC, dataset, sides.train, CPU, sides.held_out)
    finally:
        real_side.real_features = run
    real = evaluator.real["local"]
    assert real.rows is not None and isinstance(real.features, Moments)
    state = {name: array.tobytes().hex() for name, array in real.features.to_arrays().items()}
    return json.dumps([state, real.rows.tobytes().hex(), evaluator.noise_floor])


def measure(folder: Path) -> None:
    side(folder)


def passes(folder: Path) -> int:
    file = folder / "passes"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_features, "VERSION", kept_features.VERSION)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("unbroken")
    torch.set_num_threads(1)
    version = kept_features.VERSION
    found = side(folder)
    assert passes(folder) == 2 and side(folder) == found and passes(folder) == 2
    kept_features.VERSION = version
    return found


def work(folder: Path, number: int) -> None:
    (folder / f"{number}.json").write_text(side(folder))


def test_processes_that_start_together_share_one_pass(tmp_path: Path, unbroken: str) -> None:
    processes = [fork(partial(work, tmp_path, number)) for number in range(3)]
    assert [exit_code(process) for process in processes] == [0, 0, 0]
    assert {(tmp_path / f"{number}.json").read_text() for number in range(3)} == {unbroken}
    assert passes(tmp_path) == 2


@pytest.mark.slow
def test_pass_killed_at_random_instants_is_repeated_once_with_the_same_bits(
    tmp_path: Path, unbroken: str
) -> None:
    timed = tmp_path / "timed"
    timed.mkdir()
    begun = time.monotonic()
    assert in_child(partial(measure, timed)) == 0
    duration, dice = time.monotonic() - begun, random.Random(22)
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        for _ in range(3):
            ended = in_child(partial(measure, folder), kill_after=dice.uniform(0, duration))
            assert ended in (-signal.SIGKILL, 0)
        finished = passes(folder)
        assert side(folder) == unbroken and side(folder) == unbroken
        # A pass that was logged can have died only between its end and the rename of its entry.
        assert 2 <= passes(folder) <= finished + 2
