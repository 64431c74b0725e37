"""Tuning on equal budgets: every method gets the same number of trials, and every trial the same counted
FLOPs.

This is AlgoPerf's external tuning (docs/DOCUMENTATION.md, "Tuning Rulesets"): one search per method over a
declared space, with a fixed number of trials and a fixed cost per trial. A method whose step costs more takes
fewer steps within that cost.

A trial is a point of the method's search space, run on every tuning seed. Its value is the mean over seeds of
the target metric at the last evaluation, infinity if the loss was not finite. Optuna's samplers run in this
process, in memory and seeded, and every finished trial is logged (trial_log.py). After a kill the samplers
propose the same trials again. Logged trials are not repeated, and the runs of an unfinished trial have the
same ids, so that they resume.
"""

from __future__ import annotations

import copy
import itertools
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.records.evaluations import falling, row_of
from harness.records.record import Record
from sweeps.plan.method_settings import restricted
from sweeps.plan.plan import ExcludedRun, PlannedRun, make_plan
from sweeps.plan.run_cost import run_cost, steps_within
from sweeps.plan.search_space import SearchSpace, search_space
from sweeps.plan.study import Study, Target, Tune
from sweeps.tune.trial_log import Trial, TrialLog

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseSampler

Runner = Callable[[Sequence[PlannedRun], str], None]
"""Runs planned runs to their end, under a headline; raises `Unfinished` if that fails."""


class Unfinished(Exception):
    """Runs ended without a result: killed, interrupted, or failed for another reason than a loss that is not
    finite."""


@dataclass(frozen=True)
class TuningArm:
    """A method of the study, and its search space."""

    method: str
    values: dict[str, Any]
    """The value on each axis of the study, without the seed."""
    space: SearchSpace
    steps: int
    """The planned steps of its runs, which the study sets or its `budget.flops_per_run` gives."""


@dataclass(frozen=True)
class TuningStudy:
    """The search of a study: its arms, the budget of a run, and the folder of its runs and its trial log."""

    study: Study
    arms: list[TuningArm]
    audit_seeds: tuple[int, ...]
    metric: str
    flops_per_run: float
    directory: Path
    excluded: list[ExcludedRun]

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.study.tuning_seeds

    @property
    def threads(self) -> list[int]:
        """The CPU threads in each arm's spec; 0 if it names none."""
        return [trial_runs(self.study, arm, {})[0].spec.runtime.threads for arm in self.arms]

    @property
    def flops(self) -> float:
        """The budget of each method."""
        return self.flops_per_run * len(self.seeds) * self.study.tune.trials


def make_tuning_study(study: Study, directory: Path) -> TuningStudy:
    """Return the search of a study.

    Raises `UserError` for a study without tuning seeds, with two arms of one method, or with an empty search
    space.
    """
    seeds, tune = study.tuning_seeds, study.tune
    if not seeds:
        raise UserError(f"study {study.name} has no tuning seeds; add [seeds] tuning = 3, or a list")
    plan = make_plan(study)
    arms = _arms(study, plan.runs)
    _check_grid(tune, arms)
    full = min(run_cost(trial_runs(study, arm, {})[0].spec).total for arm in arms)
    return TuningStudy(
        study=study,
        arms=arms,
        audit_seeds=tuple(dict.fromkeys(run.spec.seed for run in plan.runs)),
        metric=falling(study.target.metric or plan.runs[0].spec.eval.metrics[0]),
        flops_per_run=full if tune.flops is None else min(full, tune.flops / (len(seeds) * tune.trials)),
        directory=directory,
        excluded=plan.excluded,
    )


def trial_runs(
    study: Study,
    arm: TuningArm,
    params: dict[str, Any],
    steps: int | None = None,
    directory: Path | None = None,
) -> list[PlannedRun]:
    """Return the runs of a trial, one for each tuning seed, with `steps` steps (default: as planned)."""
    length = {} if steps is None else {"train.steps": steps}
    chosen = {**arm.values, "train.steps": arm.steps, **params, **length}
    fixed = {path: (copy.deepcopy(value),) for path, value in chosen.items()}
    axes = {"seed": study.tuning_seeds, **fixed}
    unused = {"zip": {}, "exclude": (), "baseline": None, "seeds": type(study.seeds)(), "tuning": {}}
    # Equal FLOPs for each run of the study would replace the steps of a trial.
    unused["budget"] = study.budget.model_copy(update={"flops_per_run": None})
    # A trial has one arm, and may end before the step of a target.
    unused |= {**restricted(study, [arm.method]), "target": Target(metric=study.target.metric)}
    shared = {path: value for path, value in study.set.items() if path not in axes}
    return make_plan(study.model_copy(update={"axes": axes, "set": shared, **unused}), directory).runs


def first_runs(tuning: TuningStudy) -> list[PlannedRun]:
    """Return the runs of each arm before any setting is searched, for checks before a search starts."""
    return [run for arm in tuning.arms for run in trial_runs(tuning.study, arm, {})]


def tune(tuning: TuningStudy, log: TrialLog, run: Runner) -> None:
    """Propose and run trials until every method has its number; logged trials are not run again.

    Methods advance together, round by round. Raises `UserError` if the log belongs to another search, and
    `Unfinished` as `run` does.
    """
    settings = tuning.study.tune
    searches = [MethodSearch(arm, settings) for arm in tuning.arms]
    for first in range(0, settings.trials, settings.batch):
        numbers = range(first, min(first + settings.batch, settings.trials))
        asked = [(search, number, search.ask()) for search in searches for number in numbers]
        logged = [_logged(log, search.arm, number, trial.params) for search, number, trial in asked]
        new = [
            _OpenTrial(tuning, search, number, trial)
            for (search, number, trial), old in zip(asked, logged, strict=True)
            if old is None
        ]
        _run_trials(new, run, f"trials {numbers[0] + 1} to {numbers[-1] + 1} of {settings.trials}")
        for one in new:
            log.add(one.result(), one.search.distributions)
        for (search, number, trial), old in zip(asked, logged, strict=True):
            search.tell(trial, old or log.trials(search.arm.method)[number], reported=old is None)


class MethodSearch:
    """The sampler of one method, in memory: Optuna's `ask` and `tell`.

    The same results give the same trials, whether or not the search was killed in between.
    """

    def __init__(self, arm: TuningArm, settings: Tune) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.arm = arm
        self.distributions = {path: dim.distribution() for path, dim in arm.space.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            pruner = optuna.pruners.WilcoxonPruner(p_threshold=settings.prune) if settings.prune else None
            self._study = optuna.create_study(
                sampler=_sampler(settings), pruner=pruner or optuna.pruners.NopPruner()
            )
        if settings.sampler == "grid":
            for point in grid(arm.space, settings.seed):
                self._study.enqueue_trial(point)

    def ask(self) -> optuna.Trial:
        return self._study.ask(self.distributions)

    def tell(self, trial: optuna.Trial, result: Trial, *, reported: bool) -> None:
        """Pass a result to the sampler; `reported` if the trial has its values by seed already."""
        if not reported:
            for seed, value in result.values.items():
                trial.report(value, seed)
        self._study.tell(trial, result.mean)


def grid(space: SearchSpace, seed: int) -> list[dict[str, Any]]:
    """Return all grid points of a space in a shuffled order, so that the first few cover it."""
    names = sorted(space)
    points = [
        dict(zip(names, row, strict=True)) for row in itertools.product(*(space[n].grid() for n in names))
    ]
    random.Random(seed).shuffle(points)
    return points


def _sampler(settings: Tune) -> BaseSampler:
    from optuna import samplers

    if settings.sampler == "tpe":
        return samplers.TPESampler(seed=settings.seed, n_startup_trials=settings.startup)
    if settings.sampler == "qmc":
        return samplers.QMCSampler(seed=settings.seed, scramble=True, warn_independent_sampling=False)
    return samplers.RandomSampler(seed=settings.seed)


class _OpenTrial:
    """A trial whose runs are not all finished."""

    def __init__(self, tuning: TuningStudy, search: MethodSearch, number: int, trial: optuna.Trial) -> None:
        self.tuning, self.search, self.number, self.trial = tuning, search, number, trial
        study, arm = tuning.study, search.arm
        cost = run_cost(trial_runs(study, arm, trial.params)[0].spec)
        self.steps = steps_within(cost, tuning.flops_per_run)
        if not self.steps:
            raise UserError(
                f"tune.flops = {study.tune.flops:g} is too small for one step of {arm.method} in each of its "
                f"{study.tune.trials} trials on {len(tuning.seeds)} seeds; one step costs {cost.step:.3g}"
            )
        self.flops = cost.until(self.steps)
        runs = trial_runs(study, arm, trial.params, self.steps, tuning.directory)
        self.runs = {run.spec.seed: run for run in runs}
        self.values: dict[int, float] = {}
        self.pruned = False

    def read(self, seeds: Sequence[int]) -> None:
        """Read the results of the runs with these seeds, and decide whether the trial ends early."""
        for seed in seeds:
            record = Record(self.tuning.directory / self.runs[seed].id)
            self.values[seed] = value_of(record, self.tuning.metric)
            self.trial.report(self.values[seed], seed)
        last = len(self.values) == len(self.runs)
        self.pruned = not last and bool(self.tuning.study.tune.prune) and self.trial.should_prune()

    def result(self) -> Trial:
        runs = {seed: self.runs[seed].id for seed in self.values}
        return Trial(
            method=self.search.arm.method,
            number=self.number,
            params=self.trial.params,
            steps=self.steps,
            flops=self.flops * len(runs),
            runs=runs,
            values=self.values,
            pruned=self.pruned,
        )


def value_of(record: Record, metric: str) -> float:
    """Return the metric at a run's last evaluation; infinity if the loss or the metric was not finite.

    Raises `Unfinished` for any other run that is not done.
    """
    if record.status == "done":
        measured = row_of(record.of("eval")[-1], metric)
        return float("inf") if measured is None else measured["mean"]
    if record.status == "failed" and "not finite" in (record.failure or {}).get("reason", ""):
        return float("inf")
    raise Unfinished(record.id)


def _run_trials(trials: Sequence[_OpenTrial], run: Runner, headline: str) -> None:
    """Run all seeds together; one after the other if a trial may be pruned between them."""
    if not trials:
        return
    seeds, prune = trials[0].tuning.seeds, trials[0].tuning.study.tune.prune
    for wave in [(seed,) for seed in seeds] if prune else [seeds]:
        open_trials = [trial for trial in trials if not trial.pruned]
        runs = {one.id: one for seed in wave for one in (trial.runs[seed] for trial in open_trials)}
        run(list(runs.values()), headline)
        for trial in open_trials:
            trial.read(wave)


def _logged(log: TrialLog, arm: TuningArm, number: int, params: dict[str, Any]) -> Trial | None:
    """Return the logged trial of this number, or None; raise `UserError` if it has other parameters."""
    trials = log.trials(arm.method)
    if number >= len(trials):
        return None
    if trials[number].params != params:
        raise UserError(
            f"{log.file} holds another search: trial {number} of {arm.method} was {trials[number].params}, "
            f"and is now {params}; the space, the sampler or its version has changed. Choose another --out"
        )
    return trials[number]


def _arms(study: Study, runs: Sequence[PlannedRun]) -> list[TuningArm]:
    arms: dict[str, TuningArm] = {}
    for run in runs:
        name, values = run.spec.method.name, {p: v for p, v in run.values.items() if p != "seed"}
        space = search_space(name, study.tune.space, study.tune.methods.get(name, {}))
        if arms.setdefault(name, TuningArm(name, values, space, run.spec.train.steps)).values != values:
            raise UserError(f"study {study.name} has several arms of {name}; tuning takes one arm per method")
    if unused := study.tune.methods.keys() - arms.keys():
        raise UserError(
            f"study {study.name}: tune.methods names {', '.join(sorted(unused))}, "
            "which the study does not run"
        )
    return list(arms.values())


def _check_grid(settings: Tune, arms: Sequence[TuningArm]) -> None:
    for arm in arms if settings.sampler == "grid" else ():
        if (points := len(grid(arm.space, 0))) < settings.trials:
            raise UserError(
                f"the grid of {arm.method} has {points} points, fewer than tune.trials = {settings.trials}; "
                "increase the points of its dimensions, or reduce tune.trials"
            )
