"""Tuning on equal budgets and separate seeds, with a history that no kill changes.

Runs are records written without a network.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import scipy.stats
import tomli_w

from harness.assembly.resolve import load_spec
from harness.config import registry
from harness.costs.flops import count_spec
from harness.errors import UserError
from harness.records.record import Record
from harness.records.record_writer import RecordWriter
from reports.audit.inputs.claim import Claim, read_tuning
from reports.audit.inputs.run_log import AuditRuns
from reports.audit.preconditions import failed_preconditions
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.run_cost import steps_within
from sweeps.plan.search_space import Dimension
from sweeps.plan.study import Study, load_study
from sweeps.tune.results import best_trial, interval, write_results
from sweeps.tune.trial_log import TRIAL_LOG, TrialLog
from sweeps.tune.tuner import TuningStudy, Unfinished, grid, make_tuning_study, tune
from tests.sweeps.conftest import RATE, TABLE


def study(folder: Path, **changes: Any) -> Study:
    file = folder / "t.toml"
    file.write_text(tomli_w.dumps(TABLE | changes))
    return load_study(str(file))


def tuned(folder: Path, **tune_changes: Any) -> TuningStudy:
    return make_tuning_study(study(folder, tune=TABLE["tune"] | tune_changes), folder / "out")


def value(planned: PlannedRun) -> float:
    """Return a parabola in the logarithm of the learning rate, shifted by the seed."""
    rate = planned.spec.train.learning_rate
    return 5 + math.log(rate / 3e-3) ** 2 + 0.1 * (planned.spec.seed % 10)


def finish(planned: PlannedRun, folder: Path, mean: float | None) -> None:
    """Write the record of a run that ended with a value, or with a loss that is not finite (None)."""
    with RecordWriter(folder / planned.id) as record:
        record.write_spec(planned.spec.to_toml())
        record.begin({"started": 0}, after_step=0)
        if mean is None:
            return record.fail({"reason": "the loss is not finite at step 3"})
        metrics = {"fd:local": {"mean": mean, "low": None, "high": None, "n": 24}}
        step = planned.spec.train.steps
        record.append({"kind": "eval", "step": step, "images": 8 * step, "metrics": metrics, "protocol": "p"})
        record.finish({})


class Runs:
    """A runner that finishes every planned run that is not done, and remembers their ids."""

    def __init__(self, folder: Path, values: Any = value) -> None:
        self.folder, self.values, self.begun = folder, values, []

    def __call__(self, planned_runs: Sequence[PlannedRun], _: str) -> None:
        for planned in planned_runs:
            if Record(self.folder / planned.id).status != "done":
                self.begun.append(planned.id)
                finish(planned, self.folder, self.values(planned))


def search(tuning: TuningStudy, values: Any = value) -> tuple[TrialLog, Runs]:
    tuning.directory.mkdir(exist_ok=True)
    trial_log, runs = TrialLog(tuning.directory, tuning.study.name), Runs(tuning.directory, values)
    tune(tuning, trial_log, runs)
    return trial_log, runs


def history(tuning: TuningStudy) -> str:
    write_results(tuning, TrialLog(tuning.directory, tuning.study.name))
    return (tuning.directory / "history.json").read_text()


@pytest.mark.slow
def test_methods_get_equal_trials_and_no_run_exceeds_the_cheapest_full_run(
    tmp_path: Path,
) -> None:
    tuning = tuned(tmp_path)
    trial_log, _ = search(tuning)
    full = count_spec(load_spec("digits", ["backbone.size=2x64x4", "train.batch_size=8", "train.steps=40"]))
    assert tuning.flops == full.total * 2 * 4
    for method in ("flow", "self_flow"):
        trials = trial_log.trials(method)
        assert len(trials) == 4 and all(set(trial.runs) == {100, 101} for trial in trials)
        for trial in trials:
            spec = Record(tuning.directory / trial.runs[100]).spec
            alone = count_spec(plan_one(spec))
            assert trial.flops == 2 * alone.total <= 2 * full.total
            # One more step would exceed the budget.
            assert method == "flow" or alone.total + alone.step > full.total
    assert trial_log.trials("flow")[0].steps == 40 > trial_log.trials("self_flow")[0].steps


def plan_one(spec: dict[str, Any]) -> Any:
    from harness.assembly.resolve import resolve

    return resolve(spec)


def test_smaller_budget_gives_fewer_steps_and_less_than_one_is_rejected(tmp_path: Path) -> None:
    half = tuned(tmp_path).flops / 2
    tuning = tuned(tmp_path, flops=half)
    assert tuning.flops == half
    trial_log, _ = search(tuning)
    assert {trial.steps for trial in trial_log.trials("flow")} == {20}
    poor = tuned(tmp_path, flops=half / 1000)
    with pytest.raises(UserError, match="is too small for one step of flow"):
        tune(poor, TrialLog(tmp_path, "poor"), Runs(tmp_path))


def test_steps_within_a_cost_with_an_early_stop(tmp_path: Path) -> None:
    early = ["method.name=self_flow", "method.schedule.until=10", "train.steps=40", "backbone.size=2x64x4"]
    cost = count_spec(load_spec("digits", early))
    slow = [max(s for s in range(41) if cost.until(s) <= share * cost.total) for share in (0.1, 0.5, 0.9, 2)]
    assert [steps_within(cost, share * cost.total) for share in (0.1, 0.5, 0.9, 2)] == slow
    assert slow[-1] == 40


@pytest.mark.parametrize(
    "sampler",
    ["tpe", pytest.param("qmc", marks=pytest.mark.slow), pytest.param("random", marks=pytest.mark.slow)],
)
def test_proposals_equal_those_of_optuna_alone(tmp_path: Path, sampler: str) -> None:
    """An uninterrupted loop of Optuna's own `ask` and `tell` gives the same points."""
    kinds = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=7, n_startup_trials=2),
        "qmc": lambda: optuna.samplers.QMCSampler(seed=7, scramble=True),
        "random": lambda: optuna.samplers.RandomSampler(seed=7),
    }
    trial_log, _ = search(tuned(tmp_path, sampler=sampler, seed=7))
    alone, points = optuna.create_study(sampler=kinds[sampler]()), []
    for _ in range(4):
        trial = alone.ask(
            {"train.learning_rate": optuna.distributions.FloatDistribution(1e-3, 1e-2, log=True)}
        )
        points.append(trial.params)
        log = math.log(trial.params["train.learning_rate"] / 3e-3) ** 2
        alone.tell(trial, (5 + log + 0.0 + 5 + log + 0.1 * 1) / 2)
    assert [trial.params for trial in trial_log.trials("flow")] == points


@pytest.mark.slow
def test_grid_visits_every_point_once(tmp_path: Path) -> None:
    wide = {"train.learning_rate": {**RATE, "points": 4}, "ema.decay": {"choices": [0.9, 0.99]}}
    trial_log, _ = search(tuned(tmp_path, sampler="grid", trials=8, space=wide, methods={"self_flow": {}}))
    visited = {tuple(trial.params.values()) for trial in trial_log.trials("flow")}
    spaced = {1e-3, 1e-3 * 10 ** (1 / 3), 1e-3 * 10 ** (2 / 3), 1e-2}
    assert {round(rate, 9) for rate, _ in visited} == {round(rate, 9) for rate in spaced} and len(
        visited
    ) == 8
    with pytest.raises(UserError, match=r"grid of flow has 8 points, fewer than tune.trials = 9"):
        tuned(tmp_path, sampler="grid", trials=9, space=wide)


def test_grid_of_integers() -> None:
    assert grid({"method.layer": Dimension(low=1, high=3)}, 0) != []
    assert Dimension(low=1, high=4, points=9).grid() == [1, 2, 3, 4]


@pytest.mark.slow
def test_kill_at_any_moment_loses_and_repeats_no_trial(tmp_path: Path) -> None:
    """Forked coordinators kill themselves at a random opened file, until one finishes."""
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    for folder in (calm, wild):
        folder.mkdir()
    undisturbed, killed, dice, kills = tuned(calm, trials=5), tuned(wild, trials=5), random.Random(21), 0
    search(undisturbed)
    while (status := forked(killed, after=dice.randrange(1, 120))) != 0:
        assert status == signal.SIGKILL
        kills += 1
        assert kills < 200
    assert kills >= 5
    assert history(killed) == history(undisturbed)
    ids = {run for trial in json.loads(history(killed)) for run in trial["runs"].values()}
    assert {folder.parent.name for folder in killed.directory.glob("*/spec.toml")} == ids and len(ids) == 20
    before = (killed.directory / TRIAL_LOG).read_bytes()
    assert search(killed)[1].begun == [] and (killed.directory / TRIAL_LOG).read_bytes() == before


def forked(tuning: TuningStudy, after: int) -> int:
    """Search in a forked process that dies when it opens its `after`-th file in the folder.

    Return the signal that ended it, or 0.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) * -1
    left = [after]

    def count_down(event: str, args: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename") and str(args[0]).startswith(str(tuning.directory)):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.addaudithook(count_down)
        search(tuning)
        code = 0
    finally:
        os._exit(code)


def test_trial_log_removes_an_incomplete_line_and_a_stale_lock(tmp_path: Path) -> None:
    tuning = tuned(tmp_path)
    search(tuning)
    before, file = history(tuning), tuning.directory / TRIAL_LOG
    file.write_bytes(file.read_bytes()[:-9])
    (tuning.directory / f"{TRIAL_LOG}.lock").symlink_to(file)
    _, runs = search(tuning)
    assert runs.begun == [] and history(tuning) == before


def test_changed_space_is_rejected_and_more_trials_are_accepted(tmp_path: Path) -> None:
    search(tuned(tmp_path))
    moved = {"train.learning_rate": RATE | {"high": 5e-2}}
    with pytest.raises(UserError, match="holds another search: trial 0 of flow"):
        search(tuned(tmp_path, space=moved))
    more = tuned(tmp_path, trials=6)
    trial_log, runs = search(more)
    assert len(trial_log.trials("flow")) == 6 and len(runs.begun) == 2 * 2 * 2


def test_killed_run_is_not_a_result(tmp_path: Path) -> None:
    tuning = tuned(tmp_path)
    with pytest.raises(Unfinished):
        tuning.directory.mkdir()
        tune(tuning, TrialLog(tuning.directory, "t"), lambda planned_runs, headline: None)
    trial_log, _ = search(tuning)
    assert len(trial_log.trials("flow")) == 4


def test_infinite_loss_is_the_worst_value_and_uses_a_trial(tmp_path: Path) -> None:
    tuning = tuned(tmp_path)

    def diverging(planned: PlannedRun) -> float | None:
        return None if planned.spec.train.learning_rate > 3e-3 else value(planned)

    trial_log, _ = search(tuning, diverging)
    for method in ("flow", "self_flow"):
        for trial in trial_log.trials(method):
            assert math.isinf(trial.mean) == (trial.params["train.learning_rate"] > 3e-3)
        assert best_trial(trial_log.trials(method)).params["train.learning_rate"] <= 3e-3
    assert any(math.isinf(trial.mean) for trial in trial_log.trials("flow"))
    assert "null" in history(tuning) and "Infinity" not in history(tuning)


@pytest.mark.slow
def test_pruning_pairs_seeds_and_ends_a_bad_trial_early(tmp_path: Path) -> None:
    many = study(
        tmp_path,
        seeds={"audit": 3, "tuning": 8},
        tune=TABLE["tune"] | {"prune": 0.1, "trials": 6, "sampler": "random"},
    )
    tuning = make_tuning_study(many, tmp_path / "out")
    trial_log, runs = search(tuning)
    trials = trial_log.trials("flow")
    assert any(trial.pruned for trial in trials) and not trials[0].pruned
    best = math.inf
    for trial in trials:
        worst = [trial.values[seed] for seed in trial.values]
        # All differences have one sign, so p = 2^-n, which is below 0.1 from four seeds on.
        if trial.pruned:
            assert 4 <= len(worst) < 8 and trial.mean > best
        else:
            assert len(worst) == 8
        best = min(best, trial.mean)
    assert not best_trial(trials).pruned
    assert len(runs.begun) == sum(len(t.runs) for m in ("flow", "self_flow") for t in trial_log.trials(m))


def test_best_trials_become_presets_and_an_audit_study(tmp_path: Path) -> None:
    tuning = tuned(tmp_path)
    trial_log, _ = search(tuning)
    files = write_results(tuning, trial_log)
    for method in ("flow", "self_flow"):
        best = min(trial_log.trials(method), key=lambda trial: trial.mean)
        spec = load_spec(files[method], ["seed=5"])
        assert spec.train.learning_rate == best.params["train.learning_rate"] and spec.train.steps == 40
    audit = load_study(files["audit"])
    planned_runs = make_plan(audit).runs
    assert {planned.spec.seed for planned in planned_runs} == {0, 1, 2} and len(planned_runs) == 6
    for planned in planned_runs:
        assert load_spec(files[planned.spec.method.name], [f"seed={planned.spec.seed}"]).id == planned.id
    own = read_tuning([(Path(files["audit"]), tomllib.loads(Path(files["audit"]).read_text()))])
    assert {(t.trials, t.flops, t.seeds) for t in own.values()} == {(4, tuning.flops, (100, 101))}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"trials": 5}, "trials: flow 4, self_flow 5"),
        ({"flops": 1.0}, "unequal tuning budgets in flops"),
    ],
)
def test_audit_rejects_unequal_tuning_budgets(
    tmp_path: Path, change: dict[str, Any], reason: str | None
) -> None:
    tuning = tuned(tmp_path)
    trial_log, _ = search(tuning)
    table = tomllib.loads(Path(write_results(tuning, trial_log)["audit"]).read_text())
    table["tuning"]["self_flow"] |= change
    claim = Claim(name="c", candidate="self_flow", baseline="flow", metric="fd:local", target=1.0, factor=1.5)
    empty = AuditRuns({}, {})
    found = [
        r for r in failed_preconditions(claim, empty, read_tuning([(Path("x"), table)])) if r.name == "tuning"
    ]
    assert [reason in str(one) for one in found] == ([True] if reason else [])


def test_interval_equals_scipys(tmp_path: Path) -> None:
    values = [5.0, 5.4, 4.7]
    ours, theirs = interval(values), scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert ours == pytest.approx((theirs.low, theirs.high)) and interval([1.0]) is None


@pytest.mark.parametrize("seeds", [{"audit": [0, 1], "tuning": [1, 2]}, {"audit": 1001, "tuning": 1}])
def test_overlapping_seeds_are_rejected(tmp_path: Path, seeds: dict[str, Any]) -> None:
    small = {"method.name": ["flow"]}
    with pytest.raises(UserError, match=r"seed (1|1000) is both a tuning seed and an audit seed"):
        make_plan(study(tmp_path, seeds=seeds, axes=small))


def test_seed_numbers_are_disjoint_and_survive_a_round_trip(tmp_path: Path) -> None:
    loaded = study(tmp_path, seeds={"audit": 2, "tuning": 2})
    assert loaded.axes["seed"] == (0, 1) and loaded.seeds.tuning == (1000, 1001)
    (tmp_path / "again.toml").write_text(loaded.to_toml())
    assert load_study(str(tmp_path / "again.toml")) == loaded
    with pytest.raises(UserError, match=r"seeds\.audit and axes\.seed set the same field"):
        study(tmp_path, axes={"seed": [0], "method.name": ["flow"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": {"audit": 2}}, "has no tuning seeds"),
        ({"tune": {"trials": 2}}, "flow declares no search space"),
        ({"tune": TABLE["tune"] | {"methods": {"repa": {}}}}, "tune.methods names repa"),
        ({"axes": {"method.name": ["flow"], "ema.decay": [0.9, 0.99]}}, "several arms of flow"),
        ({"tune": {"space": {"train.learning_rate": {"low": 2.0, "high": 1.0}}}}, "must be below"),
        ({"tune": {"space": {"train.learning_rate": {"low": 0.0, "high": 1.0, "log": True}}}}, "above 0"),
        ({"tune": {"sampler": "cma"}}, "tune.sampler"),
    ],
)
def test_study_that_cannot_be_tuned_is_rejected(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_tuning_study(study(tmp_path, **changes), tmp_path)


@pytest.mark.parametrize("method", sorted(registry.METHODS))
def test_declared_spaces_are_valid_for_digits_and_the_default(tmp_path: Path, method: str) -> None:
    """Every choice and both ends of every range make a valid spec, and the method's default is among them."""
    spec = load_spec("digits", [f"method.name={method}"])
    for name, declared in type(spec.method).space.items():
        dimension = Dimension.model_validate(declared)
        for end in dimension.grid():
            load_spec("digits", [f"method.name={method}", f"method.{name}={end}"])
        default = getattr(spec.method, name)
        if dimension.choices:
            assert default in dimension.choices
        else:
            low, high = dimension.bounds
            assert low <= default <= high
