"""Tuning on equal terms: every method gets as many trials as any other, and a trial as many counted FLOPs.

This is AlgoPerf's external tuning (docs/DOCUMENTATION.md, "Tuning Rulesets"): one search per method over a declared space, a
fixed number of trials, a fixed cost of each. A method whose step costs more takes fewer steps within that cost.

A trial is a point of the method's space, run on every tuning seed; its value is the mean over seeds of the target metric at the
last evaluation, infinity where the loss was not finite. Optuna proposes (ask) and learns (tell) in this process alone, in memory,
from seeded samplers; a finished trial is one line in Optuna's journal. After a kill the same questions are asked again: what
the journal holds is told as it stands, and a proposal that was under way has the same ids, so that its runs are found.
"""

from __future__ import annotations

import copy
import itertools
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.spec import RunSpec, canonical
from harness.costs.flops import Cost, count_spec
from harness.errors import UserError
from harness.records.record import Record
from sweeps.plan.plan import Cell, LeftOut, plan, whole_plan
from sweeps.plan.search_space import Space, space_of
from sweeps.plan.study import Study, Tune
from sweeps.tune.trial_log import Journal, Trial

Runner = Callable[[Sequence[Cell], str], None]
"""Runs cells to their ends, under a headline; raises `Unfinished` where that is not to be had."""


class Unfinished(Exception):
    """Runs ended without a result: killed, interrupted, or failed by anything but their loss."""


@dataclass(frozen=True)
class Arm:
    """A method as the study has it, and where its settings are searched."""

    method: str
    values: dict[str, Any]
    """By axis of the study, the seed left out."""
    space: Space


@dataclass(frozen=True)
class Tuner:
    """A study's search: its arms, the FLOPs that one run may cost, and where its runs and journal lie."""

    study: Study
    arms: list[Arm]
    audit_seeds: tuple[int, ...]
    metric: str
    flops_per_run: float
    directory: Path
    left_out: list[LeftOut]

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.study.seeds.tuning

    @property
    def threads(self) -> list[int]:
        """Of a run, as each arm's spec names them; 0 for none."""
        return [trial_cells(self.study, arm, {})[0].spec.runtime.threads for arm in self.arms]

    @property
    def flops(self) -> float:
        """What each method is given."""
        return self.flops_per_run * len(self.seeds) * self.study.tune.trials


def tuner_of(study: Study, directory: Path) -> Tuner:
    """Raises `UserError` for a study without tuning seeds, with two arms of one method, or with nothing to search."""
    if not study.seeds.tuning:
        raise UserError(f"study {study.name} names no tuning seeds; add [seeds] tuning = 3, or a list")
    found = whole_plan(study)
    cells = found.cells
    arms = _arms(study, cells)
    _check_grid(study.tune, arms)
    runs = len(study.seeds.tuning) * study.tune.trials
    whole = min(cost_of(trial_cells(study, arm, {})[0].spec).total for arm in arms)
    allowed = whole if study.tune.flops is None else min(whole, study.tune.flops / runs)
    seeds = tuple(dict.fromkeys(cell.spec.seed for cell in cells))
    metric = study.target.metric or cells[0].spec.eval.metrics[0]
    return Tuner(study, arms, seeds, metric, allowed, directory, found.left_out)


def trial_cells(study: Study, arm: Arm, params: dict[str, Any], steps: int | None = None) -> list[Cell]:
    """The runs of a trial, one for each tuning seed, of `steps` steps (as many as the study says where None)."""
    length = {} if steps is None else {"train.steps": steps}
    fixed = {path: (copy.deepcopy(value),) for path, value in {**arm.values, **params, **length}.items()}
    axes = {"seed": study.seeds.tuning, **fixed}
    unused = {"zip": {}, "exclude": (), "baseline": None, "seeds": type(study.seeds)(), "tuning": {}}
    shared = {path: value for path, value in study.set.items() if path not in axes}
    return plan(study.model_copy(update={"axes": axes, "set": shared, **unused}))


def steps_within(cost: Cost, flops: float) -> int:
    """The most steps that cost no more than `flops`, at most those of the run."""
    low, high = 0, cost.steps
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost.until(middle) <= flops else (low, middle - 1)
    return low


def tune(tuner: Tuner, journal: Journal, run: Runner) -> None:
    """Ask, run and tell until every method has its trials; what the journal holds is told and not run.

    Methods go side by side, round by round, so that none waits for another. Raises `UserError` where the journal was written
    by another search, `Unfinished` as `run` does.
    """
    settings = tuner.study.tune
    askers = [Asker(arm, settings) for arm in tuner.arms]
    rounds = range(0, settings.trials, settings.batch)
    for first in rounds:
        numbers = range(first, min(first + settings.batch, settings.trials))
        asked = [(asker, number, asker.ask()) for asker in askers for number in numbers]
        held = [_held(journal, asker.arm, number, trial.params) for asker, number, trial in asked]
        new = [
            _Open(tuner, asker, n, t) for (asker, n, t), old in zip(asked, held, strict=True) if old is None
        ]
        _run_open(new, run, f"trials {numbers[0] + 1} to {numbers[-1] + 1} of {settings.trials}")
        for one in new:
            journal.add(one.finished(), one.asker.distributions)
        for (asker, number, trial), old in zip(asked, held, strict=True):
            asker.tell(trial, old or journal.trials(asker.arm.method)[number], reported=old is None)


class Asker:
    """Optuna's ask and tell for one method, in memory; the same answers for the same results, whatever was killed."""

    def __init__(self, arm: Arm, settings: Tune) -> None:
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

    def ask(self) -> Any:
        return self._study.ask(self.distributions)

    def tell(self, trial: Any, result: Trial, *, reported: bool) -> None:
        if not reported:
            for seed, value in result.values.items():
                trial.report(value, seed)
        self._study.tell(trial, result.mean)


def grid(space: Space, seed: int) -> list[dict[str, Any]]:
    """All points of a space's grid in a shuffled order, so that a part of it is spread out."""
    names = sorted(space)
    points = [
        dict(zip(names, row, strict=True)) for row in itertools.product(*(space[n].grid() for n in names))
    ]
    random.Random(seed).shuffle(points)
    return points


def _sampler(settings: Tune) -> Any:
    from optuna import samplers

    if settings.sampler == "tpe":
        return samplers.TPESampler(seed=settings.seed, n_startup_trials=settings.startup)
    if settings.sampler == "qmc":
        return samplers.QMCSampler(seed=settings.seed, scramble=True, warn_independent_sampling=False)
    return samplers.RandomSampler(seed=settings.seed)


class _Open:
    """A trial under way."""

    def __init__(self, tuner: Tuner, asker: Asker, number: int, trial: Any) -> None:
        self.tuner, self.asker, self.number, self.trial = tuner, asker, number, trial
        study, arm = tuner.study, asker.arm
        cost = cost_of(trial_cells(study, arm, trial.params)[0].spec)
        self.steps = steps_within(cost, tuner.flops_per_run)
        if not self.steps:
            raise UserError(
                f"tune.flops = {study.tune.flops:g} pays for no step of {arm.method} in {study.tune.trials} trials on "
                f"{len(tuner.seeds)} seeds; one step costs {cost.step:.3g}"
            )
        self.flops = cost.until(self.steps)
        self.cells = {cell.spec.seed: cell for cell in trial_cells(study, arm, trial.params, self.steps)}
        self.values: dict[int, float] = {}
        self.pruned = False

    def learn(self, seeds: Sequence[int]) -> None:
        for seed in seeds:
            self.values[seed] = value_of(
                Record(self.tuner.directory / self.cells[seed].id), self.tuner.metric
            )
            self.trial.report(self.values[seed], seed)
        last = len(self.values) == len(self.cells)
        self.pruned = not last and bool(self.tuner.study.tune.prune) and self.trial.should_prune()

    def finished(self) -> Trial:
        runs = {seed: self.cells[seed].id for seed in self.values}
        flops = self.flops * len(runs)
        method = self.asker.arm.method
        return Trial(
            method, self.number, self.trial.params, self.steps, flops, runs, self.values, self.pruned
        )


def value_of(record: Record, metric: str) -> float:
    """The metric at a run's last evaluation; infinity where the loss, or the metric, was not finite.

    Raises `Unfinished` for a run that is not at its end for any other reason.
    """
    if record.status == "done":
        measured = record.of("eval")[-1]["metrics"].get(metric)
        return float("inf") if measured is None else measured["mean"]
    if record.status == "failed" and "not finite" in (record.failure or {}).get("reason", ""):
        return float("inf")
    raise Unfinished(record.id)


def _run_open(trials: Sequence[_Open], run: Runner, headline: str) -> None:
    """All seeds at once; one after the other where a trial may be pruned between them."""
    if not trials:
        return
    seeds, prune = trials[0].tuner.seeds, trials[0].tuner.study.tune.prune
    for wave in [(seed,) for seed in seeds] if prune else [seeds]:
        going = [trial for trial in trials if not trial.pruned]
        cells = {cell.id: cell for seed in wave for cell in (trial.cells[seed] for trial in going)}
        run(list(cells.values()), headline)
        for trial in going:
            trial.learn(wave)


def _held(journal: Journal, arm: Arm, number: int, params: dict[str, Any]) -> Trial | None:
    trials = journal.trials(arm.method)
    if number >= len(trials):
        return None
    if trials[number].params != params:
        raise UserError(
            f"{journal.file} holds another search: trial {number} of {arm.method} was {trials[number].params}, and is now "
            f"{params}; the space, the sampler or its version has changed. Choose another --out"
        )
    return trials[number]


def _arms(study: Study, cells: Sequence[Cell]) -> list[Arm]:
    arms: dict[str, Arm] = {}
    for cell in cells:
        name, values = cell.spec.method.name, {p: v for p, v in cell.values.items() if p != "seed"}
        space = space_of(name, study.tune.space, study.tune.methods.get(name, {}))
        if arms.setdefault(name, Arm(name, values, space)).values != values:
            raise UserError(f"study {study.name} has several arms of {name}; tuning is of one arm a method")
    if strangers := study.tune.methods.keys() - arms.keys():
        raise UserError(
            f"study {study.name}: tune.methods names {', '.join(sorted(strangers))}, not in the study"
        )
    return list(arms.values())


def _check_grid(settings: Tune, arms: Sequence[Arm]) -> None:
    for arm in arms if settings.sampler == "grid" else ():
        if (points := len(grid(arm.space, 0))) < settings.trials:
            raise UserError(
                f"the grid of {arm.method} has {points} points, fewer than tune.trials = {settings.trials}; give its "
                "dimensions more points, or ask for fewer trials"
            )


_costs: dict[str, Cost] = {}


def cost_of(spec: RunSpec) -> Cost:
    """The counted cost of a run; specs of one arithmetic are counted once."""
    key = f"{canonical(spec.data)} {canonical(spec.backbone)} {canonical(spec.method)} {spec.train.batch_size} {spec.train.steps}"
    if key not in _costs:
        _costs[key] = count_spec(spec)
    return _costs[key]
