"""A race of every method of the recorded study `methods-digits` against one baseline, replayed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sequential import recorded_ratios
from reports.audit.judge_files import judge_claims
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.race.coordinator import run_race
from sweeps.race.race_file import read_race
from tests.conftest import ROOT
from tests.reports.synthetic import power_law, write_run
from tests.sweeps.races import claim_text

RESULTS = ROOT / "benchmarks" / "results"
PAIRS = 6
SEQUENTIAL = f"[claim.sequential]\nmax_pairs = {PAIRS}\nfutility = 0.1\n"


def recorded() -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation of the log ratios in steps to flow, one arm for each method."""
    found: dict[str, tuple[float, float]] = {}
    for arm, ratios in recorded_ratios()[0].items():
        found.setdefault(arm.partition(" (")[0], (float(np.mean(ratios)), float(np.std(ratios, ddof=1))))
    return found


class Replay:
    """Writes runs whose times have the recorded means and spreads."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.arms = directory, recorded()

    def __call__(self, runs: Sequence[PlannedRun]) -> tuple[Mapping[str, str], bool]:
        for run in runs:
            method, seed = run.spec.method.name, run.spec.seed
            if (self.directory / run.id).exists():
                continue
            mean, spread = self.arms.get(method, (0.0, 0.0))
            z = np.random.default_rng([18, seed, *method.encode()]).normal()
            # Flow reaches the target at step 290.
            curve = power_law(8.0 * 290.0 * math.exp(-mean - spread * z), 1.0)
            write_run(self.directory / run.id, method, seed, metric=curve, grid=range(60, 961, 60))
        return {}, False


@pytest.mark.slow
def test_race_of_many_arms_reaches_the_verdicts_of_all_runs_with_fewer(tmp_path: Path) -> None:
    """The verdicts of all runs are those of claims that are judged once, by Holm's p-values.

    An arm that the race decides is decided alike by all runs, and others are left open by it. An arm that has
    ended gets no more runs, and no other arm gets more than its registered pairs.
    """
    methods = list(recorded())
    arms = json.dumps(["flow", *methods])
    study = f'[study]\nname = "all"\nbase = "digits"\n[study.axes]\n"method.name" = {arms}\n'
    claims = [claim_text(name, target=8.0, factor=1.0) for name in methods]
    file, once = tmp_path / "race.toml", tmp_path / "once.toml"
    file.write_text(study + "".join(claim + SEQUENTIAL for claim in claims))
    once.write_text("".join(claims))
    race = read_race(file)
    plan = make_plan(race.study)
    replay = Replay(tmp_path / "runs")
    course = run_race(race, plan, replay.directory, replay, lambda _: None)
    last = {
        seen["name"]: (seen["verdict"], row["look"])
        for row in reversed(course.looks)
        for seen in row["claims"]
        if seen["ended"] or row is course.looks[-1]
    }
    assert len(course.runs) <= 0.7 * len(plan.runs)
    for name in methods:
        pairs = sum(run.spec.method.name == name for run in course.runs)
        assert 3 <= pairs == last[name][1] <= PAIRS
    full = Replay(tmp_path / "full")
    full(plan.runs)
    verdicts = {audit.claim.name: audit.adjusted for audit in judge_claims([once], [str(full.directory)])}
    decided = {name: verdict for name, (verdict, _) in last.items() if verdict != "inconclusive"}
    assert decided and decided.items() <= verdicts.items()
    assert sum(last[name][0] == verdicts[name] for name in methods) >= 0.8 * len(methods)
