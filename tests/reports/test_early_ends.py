"""Reports of runs that ended early: seconds are compared only if no time needs a horizon."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from harness.files.files import write_atomic
from harness.records.early_end import EarlyEnd
from harness.records.record import DONE
from harness.records.targets import TargetRule
from reports.race.race import Race, race_at, read_race
from reports.race.verdict import caveats_of
from tests.reports.synthetic import power_law, write_run

SLOWER = 2.0
"""The seconds of a step of repa, in those of flow."""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of 2000 steps that ended at step 1000; only runs of repa reach a target of 30."""
    folder = tmp_path_factory.mktemp("ended")
    for seed in range(3):
        for method, start in (("flow", 1000.0 + seed), ("repa", 800.0 + 9 * seed)):
            per_step = {"student": 0.01 * (SLOWER if method == "repa" else 1)}
            about = {"metric": power_law(start, 0.5), "grid": range(100, 1001, 100), "phases": per_step}
            record = write_run(folder / f"{method}-{seed}", method, seed, set_={"train.steps": 2000}, **about)
            row = EarlyEnd(1000, 2000, "fd:local <= 40 in 3 evaluations in a row", 64 * 2000, 2e9).row()
            write_atomic(record.path / DONE, json.dumps({"ended": row}).encode())
    return folder


@pytest.fixture(scope="module")
def race(ended: Path) -> Race:
    return read_race([ended], target=40.0, baseline="flow")


def test_seconds_are_compared_without_a_horizon_if_every_run_reached_the_target(race: Race) -> None:
    """By the closed form: a candidate with the same speed-up in steps, whose steps take twice as long."""
    assert race.axes == ("steps", "images", "flops", "seconds")
    assert race.horizons["steps"] == 2000 and race.horizons["seconds"] == math.inf
    steps, seconds = (race.speedups[axis, "repa"] for axis in ("steps", "seconds"))
    assert seconds.censored_baseline == seconds.censored_candidate == 0
    for found, other in (
        (seconds.estimate, steps.estimate),
        (seconds.low, steps.low),
        (seconds.high, steps.high),
    ):
        assert found == pytest.approx(other / SLOWER, rel=1e-9)
    notes = [note for note in caveats_of(race) if "horizon" in note]
    assert notes == [
        "Seconds have no horizon: 6 runs ended early, so the seconds to their last step are unknown, but "
        "every run reached the target."
    ]


def test_seconds_are_left_out_at_a_target_that_a_run_did_not_reach(race: Race) -> None:
    lower = race_at(race, TargetRule(value=30.0))
    assert lower.axes == tuple(lower.horizons) == ("steps", "images", "flops")
    assert any(run.crossing.censored == "right" for run in lower.runs)
    assert any(note.startswith("Seconds are left out: 6 runs ended early") for note in caveats_of(lower))
    assert race_at(lower, TargetRule(value=40.0)).axes == race.axes
