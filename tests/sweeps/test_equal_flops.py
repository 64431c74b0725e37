"""Runs of equal FLOPs: every run of a study has the steps that fit. Plan, report and audit state it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.costs.flops import count_spec
from harness.errors import UserError
from reports.audit.audit import audit_claim
from reports.audit.inputs.claim import Claim
from reports.audit.inputs.read import read_logs
from reports.audit.words import notes
from reports.race.race import read_race
from reports.race.verdict import caveats_of
from sweeps.cli.extend import extend
from sweeps.cli.sweep import sweep
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.run_cost import run_cost
from sweeps.plan.study import study_of
from sweeps.plan.study_folder import write_plan
from sweeps.tune.tuner import make_tuning_study, trial_runs
from tests.reports.synthetic import METRIC, write_run
from tests.support.runs import tiny

STUDY: dict[str, Any] = {
    "name": "equal",
    "base": "digits",
    "baseline": "flow",
    "axes": {"seed": [0, 1], "method.name": ["flow", "tread", "sra"]},
    "set": {"backbone.size": "pico", "train.steps": 40, "eval.every": 20},
}
TEXT = ("backbone.patch=8", "text.encoder=random:text", "eval.metrics=['loss:held_out']")


def planned(per_run: float | str, **other: Any) -> list[PlannedRun]:
    return make_plan(study_of({**STUDY, **other, "budget": {"flops_per_run": per_run}}, "test")).runs


@pytest.mark.parametrize("per_run", ["baseline", 3.3e11])
def test_every_run_is_less_than_a_step_short_of_the_budget(per_run: float | str) -> None:
    runs = planned(per_run)
    costs = {run.spec.method.name: count_spec(run.spec) for run in runs}
    budget = per_run if isinstance(per_run, float) else costs["flow"].total
    for cost in costs.values():
        assert budget - cost.step < cost.total <= budget
    steps = {name: cost.steps for name, cost in costs.items()}
    # Routing saves FLOPs, and a teacher costs some.
    assert steps["tread"] > steps["flow"] > steps["sra"] and (per_run != "baseline" or steps["flow"] == 40)
    assert len({(run.spec.method.name, run.spec.train.steps) for run in runs}) == 3
    plain = make_plan(study_of(STUDY, "test")).runs
    assert [run.id for run in runs] == [run.id for run in plain]


def test_baseline_of_the_same_cell_sets_the_budget() -> None:
    axes = {"backbone.patch": [2, 4], "method.name": ["flow", "tread"]}
    runs = planned("baseline", axes=axes)
    totals = {(run.spec.backbone.patch, run.spec.method.name): count_spec(run.spec) for run in runs}
    assert {cost.steps for (_, name), cost in totals.items() if name == "flow"} == {40}
    assert totals[2, "flow"].total > 2 * totals[4, "flow"].total
    for patch in (2, 4):
        assert 0 <= totals[patch, "flow"].total - totals[patch, "tread"].total < totals[patch, "tread"].step


@pytest.mark.parametrize(
    ("per_run", "other", "sentence"),
    [
        ("baseline", {"baseline": None}, r"needs a run of the baseline \(none is named\)"),
        (1000.0, {}, r"flops_per_run = 1000\.0 .* is too small for flow seed 0, of which one step costs"),
        (0.0, {}, r"budget\.flops_per_run"),
        ("most", {}, r"budget\.flops_per_run"),
    ],
)
def test_budget_that_no_run_can_have_is_rejected(per_run: Any, other: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        planned(per_run, **other)


def test_decay_to_the_last_step_is_supported_in_one_cell() -> None:
    decaying = {"set": {**STUDY["set"], "train.decay": "cosine"}}
    runs = planned("baseline", **decaying)
    assert len({run.id for run in runs}) == 6 and len({run.spec.train.steps for run in runs}) == 3
    with pytest.raises(UserError, match=r"train\.decay makes steps a condition of a run"):
        planned("baseline", **decaying, axes={"backbone.patch": [2, 4], "method.name": ["flow", "tread"]})


def test_trials_of_tuning_have_their_own_steps_and_by_default_the_planned_ones(tmp_path: Path) -> None:
    changes = {
        "axes": {"method.name": ["flow", "tread"]},
        "seeds": {"audit": 1, "tuning": [100]},
        "tune": {"trials": 1, "space": {"train.learning_rate": {"low": 1e-3, "high": 1e-2}}},
        "budget": {"flops_per_run": "baseline"},
    }
    study = study_of({**STUDY, **changes}, "test")
    steps = {run.spec.method.name: run.spec.train.steps for run in make_plan(study).runs}
    arms = make_tuning_study(study, tmp_path).arms
    assert [trial_runs(study, arm, {})[0].spec.train.steps for arm in arms] == list(steps.values())
    assert {trial_runs(study, arm, {}, 7)[0].spec.train.steps for arm in arms} == {7}


def test_runs_that_differ_in_their_captions_are_counted_separately() -> None:
    captions = [tiny("data.name=prompts", "backbone.kind=mmdit", f"text.length={n}", *TEXT) for n in (8, 64)]
    for spec in captions:
        assert run_cost(spec) == count_spec(spec)
    assert run_cost(captions[0]) != run_cost(captions[1])


def test_dry_run_prints_the_steps_and_the_equal_flops(tmp_path: Path) -> None:
    file = tmp_path / "equal.toml"
    study = study_of({**STUDY, "budget": {"flops_per_run": "baseline"}}, "test")
    file.write_text(study.to_toml())
    shown = CliRunner().invoke(sweep, [str(file), "--dry-run", "--out", str(tmp_path / "out")])
    steps = sorted(run.spec.train.steps for run in make_plan(study).runs)
    assert f"budget.flops_per_run): {steps[0]} to {steps[-1]} steps" in " ".join(shown.stdout.split())
    asked = [str(file), "--dry-run", "--json", "--out", str(tmp_path / "out")]
    assert json.loads(CliRunner().invoke(sweep, asked).stdout)["flops"]["per_run"] == "baseline"


def test_study_with_a_number_of_flops_is_not_extended_by_steps(tmp_path: Path) -> None:
    study = study_of({**STUDY, "budget": {"flops_per_run": 3.3e11}}, "test")
    write_plan(study, make_plan(study), tmp_path)
    found = CliRunner().invoke(extend, [str(tmp_path), "--steps", "99"])
    assert "budget.flops_per_run = 3.3e+11 sets the steps" in str(found.exception)


@pytest.mark.parametrize("equal", [True, False])
def test_report_and_audit_say_that_flops_were_equal(tmp_path: Path, equal: bool) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"flow-{seed}", "flow", seed, flops=1_000_000)
        grid = [*range(100, 2501, 100), *([2666] if equal else [])]
        write_run(tmp_path / f"tread-{seed}", "tread", seed, flops=750_000, grid=grid)
    sentence = "equal counted FLOPs (2e+09) and not equal steps: from 2,000 to 2,666"
    named = {"name": "c", "candidate": "tread", "baseline": "flow", "metric": METRIC}
    claim = Claim.model_validate({**named, "target": 50.0, "factor": 1.1, "axis": "flops"})
    audited = notes(audit_claim(claim, read_logs([str(tmp_path)], claim)))
    for said in (caveats_of(read_race([tmp_path])), audited):
        assert any(sentence in one for one in said) == equal
