"""The folder of a study, for reading: study file, plan, search of settings, records of runs. No torch.

    runs/<study>/
        study.toml          the study of `flowrace sweep`
        plan.json           {"runs": [{"id", "cell", "steps"}], "excluded": [{"cell", "reason"}]}; a run that
                            may end early has its rule in "ends_early", and a race the last of its looks in
                            "looks"
        tune.toml           the study that was searched by `flowrace tune`, instead of the two above
        history.json        every trial of the search; history.csv has the same content
        best/<method>.toml  the best settings of each method, as a preset
        audit.toml          the study that compares the best settings on audit seeds
        looks.jsonl         the looks of `flowrace race` (reports/audit/look_log.py)
        specs/<id>.toml     the spec that a launcher starts
        logs/<id>.log       the output of a run, all attempts
        <id>/               the record of a run (record.py)

`flowrace sweep` and `flowrace tune` write it (sweeps/plan, sweeps/tune). Everything else reads it here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files.files import decode_text, read_toml
from harness.files.names import check_name
from harness.files.parse import parse_json
from harness.records.evaluations import falling
from harness.records.record import Record, log_file
from harness.records.shapes import is_count
from harness.records.targets import FORMS, TargetRule, falling_rules, rule_at_step, share_rule

ACROSS = ("pooled", "cells")
"""Summaries of several cells in the headline of a report: one pooled effect, or one effect per cell."""
STUDY, PLAN, LOOKS = "study.toml", "plan.json", "looks.jsonl"
SEARCH, HISTORY, BEST, AUDIT = "tune.toml", "history.json", "best", "audit.toml"


@dataclass(frozen=True)
class PlanEntry:
    """A run of `plan.json`: its id and its axis values, for example `{"method.name": "repa", "seed": 0}`."""

    id: str
    values: Mapping[str, Any]
    steps: int | None = None
    """Number of training steps; None in plans of versions up to 0.1."""
    ends_early: str = ""
    """The rule by which the run may end early, in words."""


@dataclass(frozen=True)
class PlanExclusion:
    """A combination of axis values that `plan.json` excludes, and the reason."""

    values: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class LastLook:
    """The end of a log of looks: its number of lines, and the hash of the last one."""

    count: int
    head: str


@dataclass(frozen=True)
class PlanFile:
    """The content of `plan.json`."""

    runs: tuple[PlanEntry, ...]
    exclusions: tuple[PlanExclusion, ...]
    last_look: LastLook | None = None
    """The last look of a race, so that a log of looks that was cut or removed is detected."""

    @property
    def ids(self) -> set[str]:
        return {run.id for run in self.runs}


@dataclass(frozen=True)
class StudySettings:
    """The settings in `study.toml` that commands for finished runs use; None if not given."""

    name: str | None = None
    baseline: str | None = None
    metric: str | None = None
    target: float | None = None
    """The target value; of several, the first."""
    targets: tuple[float, ...] = ()
    """All target values, if there are several."""
    target_at: str | None = None
    """`ARM@STEP`, for example `baseline@400`: the target is the value of that arm at that step."""
    share_of_final: float | None = None
    """The target is the value at which the baseline has made this share of its way to its final value."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Shown names, by method name or arm label."""
    across: str | None = None
    """One of `ACROSS`."""

    def target_of(self, metric: str) -> float | None:
        """Return the target value if the target uses this metric, else None."""
        return self.target if self.metric in (None, metric) else None

    def rules_of(self, metric: str) -> tuple[TargetRule, ...]:
        """Return the target rules if they use this metric; empty without a target. The first is the main
        one."""
        if self.metric not in (None, metric):
            return ()
        if self.target_at is not None:
            rule = rule_at_step(self.target_at)
            return () if rule is None else (rule,)
        if self.share_of_final is not None:
            return (TargetRule(share=self.share_of_final),)
        values = self.targets or (() if self.target is None else (self.target,))
        return tuple(TargetRule(value=value) for value in values)


@dataclass(frozen=True)
class StudyFolder:
    """A folder of runs, which may hold a study, a search, or neither. Files are read when a field is first
    used.

    Every field raises `UserError` for a file that is broken or cannot be read.
    """

    path: Path

    @property
    def study_file(self) -> Path:
        return self.path / STUDY

    @property
    def looks_file(self) -> Path:
        return self.path / LOOKS

    @property
    def plan_file(self) -> Path:
        return self.path / PLAN

    @property
    def search_file(self) -> Path:
        return self.path / SEARCH

    @property
    def audit_file(self) -> Path:
        return self.path / AUDIT

    @cached_property
    def study(self) -> dict[str, Any]:
        """`study.toml` as plain data; empty if there is no such file."""
        return read_toml(self.study_file) if self.study_file.is_file() else {}

    @cached_property
    def search(self) -> dict[str, Any]:
        """`tune.toml` as plain data; empty if there is no such file."""
        return read_toml(self.search_file) if self.search_file.is_file() else {}

    @property
    def name(self) -> str:
        """The name of the study, or of the folder if it holds no study; one component of a path."""
        if "name" not in self.study:
            return check_name(self.path.resolve().name, f"{self.path}: the name of the folder")
        name = _text(self.study_file, "name", self.study["name"])
        return check_name(name or "", f"{self.study_file}: name")

    @property
    def settings(self) -> StudySettings:
        """The settings of the study; all None if the folder holds no study."""
        return _settings(self.study_file, self.study)

    @cached_property
    def plan(self) -> PlanFile | None:
        """The plan, or None if the folder holds none."""
        try:
            return _parsed(parse_json(decode_text(self.plan_file, self.plan_file.read_bytes(), "JSON")))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"cannot read {self.plan_file}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'{self.plan_file} is not a plan: expected {{"runs": [{{"id": ..., "cell": {{...}}}}]}}. '
                "Rerun the study's sweep to write it again"
            ) from error

    @property
    def required_plan(self) -> PlanFile:
        """The plan.

        Raises `UserError` if the folder holds none; for a search, the error names the command to resume it.
        """
        if self.plan is not None:
            return self.plan
        if self.search_file.exists():
            command = f"flowrace tune {self.search_file} --out {self.path}"
            raise UserError(
                f"{self.path} holds a search of settings, not a study; to resume it and print its results: "
                f"{command}"
            )
        raise UserError(f"{self.path} holds no study: no {PLAN} in it; give the --out folder of a sweep")

    @property
    def records(self) -> list[Record]:
        """The records of the planned runs in the order of the plan, missing ones included; empty without a
        plan."""
        return [Record(self.path / run.id) for run in self.plan.runs] if self.plan else []

    def is_complete(self, records: Iterable[Record]) -> bool:
        """Return whether every planned run is among the records; True for a folder without a plan."""
        return self.plan is None or self.plan.ids <= {record.id for record in records}

    def spec_file(self, run: str) -> Path:
        """Return the file of the spec that a launcher starts."""
        return self.path / "specs" / f"{run}.toml"

    def log_file(self, run: str) -> Path:
        """Return the file that receives the output of a run."""
        return log_file(self.path / run)


def _parsed(table: Any) -> PlanFile:
    runs = tuple(
        PlanEntry(str(run["id"]), dict(run["cell"]), run.get("steps"), str(run.get("ends_early", "")))
        for run in table["runs"]
    )
    for run in runs:
        check_name(run.id, "the id of a run")
        if run.steps is not None and not is_count(run.steps):
            raise ValueError(run.steps)
    excluded = table.get("excluded") or ()
    looks = table.get("looks")
    if looks is not None and not (is_count(looks["count"]) and isinstance(looks["head"], str)):
        raise ValueError(looks)
    return PlanFile(
        runs,
        tuple(PlanExclusion(dict(row["cell"]), str(row["reason"])) for row in excluded),
        None if looks is None else LastLook(looks["count"], looks["head"]),
    )


def _settings(file: Path, table: Mapping[str, Any]) -> StudySettings:
    target = table.get("target", {})
    if not isinstance(target, Mapping):
        raise UserError(
            f'{file}: target must be a table, for example [target] metric = "fd:local", value = 12.0; '
            f"it is {target!r}"
        )
    metric = _text(file, "target.metric", target.get("metric"))
    values = _falling(file, metric, _values(file, target))
    at, share = target.get("at"), target.get("share_of_final")
    given = [key for key in ("value", "values", "at", "share_of_final") if target.get(key) is not None]
    if len(given) > 1:
        raise UserError(f"{file}: target has {' and '.join(given)}; give one of them")
    if at is not None and not (isinstance(at, str) and rule_at_step(at) is not None):
        raise UserError(f'{file}: target.at = {at!r}: expected "ARM@STEP", for example "baseline@400"')
    if share is not None:
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise UserError(f"{file}: target.share_of_final = {share!r}: expected a number, for example 0.9")
        share_rule(share, f"{file}: target.share_of_final = {share!r}")
    return StudySettings(
        name=_text(file, "name", table.get("name")),
        baseline=_text(file, "baseline", table.get("baseline")),
        metric=None if metric is None else falling(metric),
        target=values[0] if values else None,
        targets=values if len(values) > 1 else (),
        target_at=at,
        share_of_final=None if share is None else float(share),
        labels=_labels(file, table.get("labels", {})),
        across=_across(file, table.get("report", {})),
    )


def _values(file: Path, target: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the values of `value` or `values`; empty without them."""
    single, several = target.get("value"), target.get("values")
    if several is not None and not (isinstance(several, list) and several):
        raise UserError(
            f"{file}: target.values = {several!r}: expected a list of numbers, for example [8, 10]"
        )
    found = [("value", single)] if several is None else [("values", value) for value in several]
    for key, value in found:
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf
        ):
            more = f"; other targets: {FORMS}" if isinstance(value, str) and "baseline@" in value else ""
            raise UserError(f"{file}: target.{key} = {value!r}: expected a number above 0{more}")
    return tuple(dict.fromkeys(float(value) for _, value in found if value is not None))


def _falling(file: Path, metric: str | None, values: tuple[float, ...]) -> tuple[float, ...]:
    """Return target values of the metric under the name by which it falls."""
    rules = falling_rules(metric, map(TargetRule, values))
    if any(rule.value is not None and rule.value <= 0 for rule in rules):
        raise UserError(f"{file}: a target of {metric} is a share below 1, but got {max(values):g}")
    return tuple(rule.value for rule in rules if rule.value is not None)


def _labels(file: Path, labels: Any) -> dict[str, str]:
    if not isinstance(labels, Mapping) or not all(isinstance(name, str) and name for name in labels.values()):
        raise UserError(f'{file}: labels must be names by method, for example [labels] repa = "REPA"')
    return {str(key): name for key, name in labels.items()}


def _across(file: Path, table: Any) -> str | None:
    across = table.get("across") if isinstance(table, Mapping) else table
    if across is not None and across not in ACROSS:
        raise UserError(f"{file}: report.across = {across!r}: expected one of {', '.join(ACROSS)}")
    return across


def _text(file: Path, key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{file}: {key} = {value!r}: expected a string")
    return value
