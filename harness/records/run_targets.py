"""The targets of one run: those requested, else its study's, relative ones from the baseline of its cell."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import UserError
from harness.records.evaluations import falling, recorded_name
from harness.records.record import Record
from harness.records.study_folder import StudyFolder, StudySettings
from harness.records.targets import (
    BASELINE,
    TargetRule,
    baseline_records,
    falling_rules,
    fit_of,
    target_value,
)


def targets_of_run(
    record: Record,
    records: Sequence[Record] = (),
    metric: str | None = None,
    rules: Sequence[TargetRule] = (),
) -> tuple[str, list[float]]:
    """Return the metric and the target values of a run; metric and rules default to those of its study.

    Runs of the baseline are looked for among `records` and in the study. Raises `UserError` without a metric
    or a target, and if a relative target has no finished run of the baseline.
    """
    study = _study(record)
    asked, metric = metric, metric or study.metric
    metric = metric if metric is None else falling(metric)
    if metric is not None and asked != metric:
        rules = falling_rules(recorded_name(metric), rules)
    rules = rules or (study.rules_of(metric) if metric is not None else ())
    if metric is None or not rules:
        raise UserError(f"{record.path} belongs to no study with a target; give --metric and --target")
    values = [_value(record, records, metric, rule, study.baseline or "flow") for rule in rules]
    return metric, values


def _value(record: Record, records: Sequence[Record], metric: str, rule: TargetRule, baseline: str) -> float:
    if rule.value is not None:
        return rule.value
    name = baseline if rule.arm == BASELINE else rule.arm
    runs = baseline_records(record, _siblings(record, records), name)
    value = target_value(rule, [fit for run in runs if (fit := fit_of(run, metric)) is not None])
    if value is None:
        raise UserError(
            f"target {rule} of {record.path} needs a finished run of '{name}' in the same cell, and these "
            "folders hold none; give a number, for example --target 8.0"
        )
    return value


def _siblings(record: Record, records: Sequence[Record]) -> list[Record]:
    """Return the given records and those of the run's study, each once."""
    planned = StudyFolder(record.path.parent).records
    found = {one.path.resolve(): one for one in (*records, *planned) if one.status != "missing"}
    return list(found.values())


def _study(record: Record) -> StudySettings:
    return StudyFolder(record.path.parent).settings
