"""The plan of a study: its runs, content-addressed and always in the same order.

A run is its training. Combinations that differ only in evaluation are one run, which is measured in several
ways.

Combinations that the study excludes are not planned, and neither are those that cannot run on their data (for
example an image encoder on sounds). The plan keeps both with the reason, which the report repeats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.assembly.compatibility import Unsuited
from harness.assembly.resolve import load_table, resolve
from harness.assembly.run_folder import run_folder
from harness.config.evaluation_spec import EvalSpec
from harness.config.spec import RunSpec
from harness.errors import UserError, unknown
from harness.records.early_end import EndRule
from harness.records.evaluations import recorded_name
from harness.records.flatten import flatten
from sweeps.plan.equal_flops import with_equal_flops
from sweeps.plan.method_settings import check_labels, check_method_settings, check_used, settings_of_run
from sweeps.plan.pretraining import (
    Pretrained,
    check_unpretrained,
    first_folder,
    first_stage,
    with_start,
)
from sweeps.plan.study import Study, combinations, format_value, run_label
from sweeps.plan.target import check_target_step, end_rule


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study: its value on every axis, and the resulting spec."""

    values: dict[str, Any]
    spec: RunSpec
    evaluations: tuple[EvalSpec, ...] = ()
    """Further evaluations of the same training."""
    folder: str | None = None
    """The name of an existing folder of an earlier version, which hashed other fields."""
    end: EndRule | None = None
    """The rule by which the run may end early; it is no part of the run's id."""

    @cached_property
    def id(self) -> str:
        """The name of the run's folder."""
        return self.folder or self.spec.id

    @property
    def variants(self) -> Iterator[RunSpec]:
        """The spec with each of its evaluations."""
        yield self.spec
        for evaluation in self.evaluations:
            yield self.spec.model_copy(update={"eval": evaluation})

    def with_threads(self, threads: int) -> PlannedRun:
        """Return the same run with this number of CPU threads; its id stays."""
        runtime = self.spec.runtime.model_copy(update={"threads": threads})
        return replace(self, spec=self.spec.model_copy(update={"runtime": runtime}))

    @property
    def label(self) -> str:
        """A short name for people, for example `repa seed 1 coefficient=0.5`."""
        return run_label({"method.name": self.spec.method.name, "seed": self.spec.seed} | self.values)


@dataclass(frozen=True)
class ExcludedRun:
    """A combination of axis values that is not run, and the reason."""

    values: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class StudyPlan:
    """The runs of a study in the order in which they start, and its excluded combinations."""

    runs: list[PlannedRun]
    excluded: list[ExcludedRun]


def make_plan(study: Study, directory: Path | None = None) -> StudyPlan:
    """Return the plan of a study; the same study gives the same ids in the same order.

    Runs that an earlier version began in the study's directory keep their folders. Raises `UserError` for a
    setting that no run can have, for a study that excludes every run, for two runs with one id, for a
    baseline or a target metric that no run has, for an early end by a metric that a run lacks, and for a run
    on a tuning seed.
    """
    check_method_settings(study)
    plan = _resolved(study, directory)
    _check_not_empty(study, plan)
    plan = replace(plan, runs=_started(study, plan.runs, directory))
    plan = replace(plan, runs=_trainings(study, plan.runs))
    _check_impartial(study, plan.runs)
    _check_seeds(study, plan.runs)
    _check_baseline(study, plan)
    _check_target(study, plan.runs)
    _check_names(study, plan)
    return replace(plan, runs=[replace(run, end=end_rule(study, run.spec)) for run in plan.runs])


def _resolved(study: Study, directory: Path | None) -> StudyPlan:
    base = load_table(study.base)
    found = [
        _run_or_exclusion(study, base, values) if reason is None else ExcludedRun(values, reason)
        for values, reason in combinations(study)
    ]
    planned = [one for one in found if isinstance(one, PlannedRun)]
    trained = with_equal_flops(study, [(one.values, one.spec) for one in planned])
    return StudyPlan(
        [
            _placed(replace(one, spec=spec), directory)
            for one, (_, spec) in zip(planned, trained, strict=True)
        ],
        [one for one in found if isinstance(one, ExcludedRun)],
    )


def _started(study: Study, runs: list[PlannedRun], directory: Path | None) -> list[PlannedRun]:
    """Return the runs, each with the run of the first stage that it starts from."""
    first = first_stage(study)
    if first is None:
        check_unpretrained(study, (run.spec for run in runs))
        return runs
    folder = None if directory is None else first_folder(study, first, directory)
    pretrained = [Pretrained(arm_of(run), run.id, run.spec) for run in make_plan(first, folder).runs]
    started = [replace(run, spec=with_start(run.spec, study, pretrained, folder)) for run in runs]
    return [_placed(run, directory) for run in started]


def arm_of(run: PlannedRun) -> str:
    """Return the name of a run's arm: its label without the seed."""
    values = {path: value for path, value in run.values.items() if path != "seed"}
    return run_label({"method.name": run.spec.method.name} | values)


def _run_or_exclusion(
    study: Study, base: Mapping[str, Any], values: dict[str, Any]
) -> PlannedRun | ExcludedRun:
    try:
        return _planned(study, base, values)
    except Unsuited as unsuited:
        return ExcludedRun(values, unsuited.why)


def _planned(study: Study, base: Mapping[str, Any], values: dict[str, Any]) -> PlannedRun:
    from harness.data.pin import pinned

    data = settings_of_run(study, base, values)
    where = ", ".join([f"study {study.name}", *_assignments(values)])
    return PlannedRun(values, pinned(resolve(data, where=where)))


def _check_not_empty(study: Study, plan: StudyPlan) -> None:
    if not plan.runs:
        reasons = "; ".join(dict.fromkeys(one.reason for one in plan.excluded))
        raise UserError(f"study {study.name} excludes every run: {reasons}")


def _placed(run: PlannedRun, directory: Path | None) -> PlannedRun:
    """Return a run with the name of its folder, if that is not its id."""
    folder = run_folder(directory, run.spec).name if directory is not None else run.spec.id
    return run if folder == run.spec.id else replace(run, folder=folder)


def _trainings(study: Study, runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """Return one run for each folder, with the evaluations of all runs that differ only in evaluation.

    Raises `UserError` for runs that are identical, or of which one is the beginning of another.
    """
    by_id: dict[str, PlannedRun] = {}
    for run in runs:
        twin = by_id.setdefault(run.id, run)
        if twin is not run:
            by_id[run.id] = _joined(study, twin, run)
    return list(by_id.values())


def _joined(study: Study, run: PlannedRun, other: PlannedRun) -> PlannedRun:
    if other.spec.train.steps != run.spec.train.steps:
        one, two = run.spec.train.steps, other.spec.train.steps
        raise UserError(
            f"study {study.name}: train.steps = {min(one, two)} is the beginning of train.steps = "
            f"{max(one, two)} of the same run ({run.id}); keep the larger one"
        )
    if other.spec.eval in [variant.eval for variant in run.variants]:
        one, two = (f"({', '.join(_assignments(each.values))})" for each in (run, other))
        raise UserError(
            f"study {study.name}: two of its runs are identical ({run.id}): {one} and {two}; "
            "remove one of them, or an axis that cannot change results"
        )
    values = {path: value for path, value in run.values.items() if other.values.get(path) == value}
    return replace(run, values=values, evaluations=(*run.evaluations, other.spec.eval))


def _check_impartial(study: Study, runs: Sequence[PlannedRun]) -> None:
    """Raise `UserError` if an arm is measured only by a network that some arm is aligned to."""
    from harness.evaluation.checks import check_arms

    encoders = {encoder.name for run in runs for encoder in run.spec.method.needs().encoders}
    check_arms((run.spec.eval for run in runs), encoders, f"study {study.name}")


def _check_seeds(study: Study, runs: Iterable[PlannedRun]) -> None:
    """Raise `UserError` if a run has a seed on which settings were tuned."""
    tuned = {seed for spent in study.tuning.values() for seed in spent.seeds}
    if both := {run.spec.seed for run in runs} & {*study.tuning_seeds, *tuned}:
        seeds = ", ".join(map(str, sorted(both)))
        raise UserError(
            f"study {study.name}: seed {seeds} is both a tuning seed and an audit seed; "
            "give disjoint seeds in [seeds]"
        )


def _check_baseline(study: Study, plan: StudyPlan) -> None:
    methods = {run.spec.method.name for run in plan.runs}
    if study.baseline is None or study.baseline in methods:
        return
    for one in plan.excluded:
        if study.baseline == flatten(one.values).get("method.name"):
            raise UserError(f"study {study.name} excludes its baseline '{study.baseline}': {one.reason}")
    raise unknown("baseline", study.baseline, methods)


def _check_names(study: Study, plan: StudyPlan) -> None:
    """Raise `UserError` for settings or a label of a method that no arm has."""
    excluded = (flatten(one.values).get("method.name") for one in plan.excluded)
    methods = {run.spec.method.name for run in plan.runs} | {str(name) for name in excluded if name}
    check_used(study, methods)
    check_labels(study, methods)


def _check_target(study: Study, runs: Sequence[PlannedRun]) -> None:
    metrics = {metric for run in runs for variant in run.variants for metric in variant.eval.metrics}
    if study.target.metric is not None and recorded_name(study.target.metric) not in metrics:
        raise unknown("target metric", study.target.metric, metrics)
    check_target_step(study, {run.label: run.spec for run in runs})


def _assignments(values: Mapping[str, Any]) -> list[str]:
    return [f"{path} = {format_value(value)}" for path, value in values.items()]
