"""Study files: the axes of a study, the settings that all its runs share, its exclusions, seeds, budget and
search.

A study is a TOML file whose first line is a comment that describes it:

    name = "digits"
    base = "digits"                                     # a preset, or a file next to the study
    baseline = "flow"                                   # the method that the others are compared with
    [axes]                                              # spec paths; the first axis varies slowest: with
    seed = [0, 1, 2]                                    # seeds first, the arms are interleaved fairly
    "method.name" = ["flow", "repa"]
    [zip.encoder]                                       # axes that vary together, value by value
    "method.encoder.name" = ["local:tiny", "local:small"]
    "method.layer" = [1, 2]
    [[exclude]]                                         # combinations that are not run, and the reason
    reason = "flow reads no encoder"
    where = { "method.name" = "flow", "method.layer" = 2 }
    [methods.repa]                                      # settings of one method's arms, as in presets
    coefficient = 0.25
    [set]                                               # settings that all runs share
    "train.steps" = 1000
    [target]                                            # one of value, values, at and share_of_final
    metric = "fd:local"
    value = 12.0                                        # values = [8.0, 12.0]
                                                        # at = "baseline@400": its value at step 400
                                                        # share_of_final = 0.9: of its way to its last value
    until = "reached"                                   # a run ends once it has reached the target
    patience = 3                                        # evaluations in a row at or below it
    margin = 0.0                                        # share by which they must be below it
    [labels]                                            # names that pages and figures show
    repa = "REPA"
    [report]
    across = "cells"                                    # headline with several cells: pooled or cells
    [seeds]                                             # instead of a seed axis; the two are disjoint.
    audit = 3                                           # A list, or a number: 0, 1, 2 and 1000, 1001
    tuning = 2
    [budget]
    flops = 1e15                                        # counted, of all runs; a larger plan is rejected
    flops_per_run = "baseline"                          # or a number: equal FLOPs instead of equal steps
    [pretraining]                                       # a first stage: `start.arm` names an arm of that
    study = "open-and-place-videos"                     # study, whose run of the same seed a run starts from
    set."train.steps" = 1500                            # settings of its runs
    [tune]                                              # budget of a method in `flowrace tune`, and space
    trials = 8
    space."train.learning_rate" = { low = 1e-3, high = 1e-2, log = true }

A setting in `[set]` is taken before one in `[methods.NAME]`, and a value of an axis before both.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, field_validator, model_validator

from harness.config.packaged import PackagedToml
from harness.config.parts import nested_path, nested_setting
from harness.config.section import Section
from harness.config.tables import parse_override, set_path, validate
from harness.errors import UserError, unknown
from harness.files.files import read_toml
from harness.files.names import LONGEST
from harness.records.evaluations import falling, recorded_name
from harness.records.flatten import flatten
from sweeps.plan.search_space import Dimension

STUDIES = PackagedToml("sweeps", "studies")
"""The studies in the package."""
TARGET_VALUES = ("value", "values", "at", "share_of_final")
"""The fields of `[target]` that set its value; a study has at most one of them."""
END_SETTINGS = ("patience", "margin")
"""The settings of an early end."""
FIRST_STAGE = "pretraining."
"""The beginning of an override that sets a field of the runs of the first stage."""
FIRST_TUNING_SEED = 1000
"""The first tuning seed if a study gives their number; audit seeds then start at 0."""


class Target(Section):
    """The metric and the value of it that arms race to: a number, several, or one that the baseline sets."""

    metric: str | None = None
    """Arms race downwards, to the shortfall of a share (`1-obeys:colour`), and upwards to `success@TASK`."""
    value: float | None = Field(default=None, gt=0)
    values: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None = None
    """Several values, each with its own result."""
    at: str | None = None
    """`baseline@STEP`, its value at an evaluation step; the baseline's own name may stand for `baseline`."""
    share_of_final: float | None = Field(default=None, gt=0, lt=1)
    """Share of the baseline's final improvement, for example 0.9."""
    until: Literal["end", "reached"] | None = None
    """`reached` ends a run once it has reached the target for good. Default: end, the last step."""
    patience: int | None = Field(default=None, ge=1)
    """Evaluations in a row at or below the target, after which a run has reached it for good (default 3)."""
    margin: float | None = Field(default=None, ge=0, lt=1)
    """Share by which these evaluations are below the target (default 0)."""

    @field_validator("at")
    @classmethod
    def _names_arm_and_step(cls, at: str | None) -> str | None:
        if at is not None and not re.fullmatch(r".+@[1-9]\d*", at):
            raise ValueError("expected baseline@STEP, for example baseline@400")
        return at

    @model_validator(mode="after")
    def _has_one_value(self) -> Self:
        given = [name for name in TARGET_VALUES if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} each set the target; keep one of them")
        highest = max(self.numbers, default=0)
        if self.metric is not None and falling(self.metric) != self.metric and highest >= 1:
            raise ValueError(f"value = {highest:g}: a target of {self.metric} is a share below 1")
        return self

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if not self.ends_early:
            unused = [name for name in END_SETTINGS if getattr(self, name) is not None]
            if unused:
                raise ValueError(f'{unused[0]} has no effect without until = "reached"')
            return self
        if not self.numbers:
            raise ValueError(
                'until = "reached" needs a target that is a number, because runs are compared with it while '
                "they train; set value or values"
            )
        if self.metric is None:
            raise ValueError('until = "reached" needs a metric; set metric, for example "fd:local"')
        if not falling(self.metric) == self.metric == recorded_name(self.metric):
            raise ValueError(
                f'until = "reached" needs a metric that falls and is recorded as it is named, not '
                f'{self.metric}; use another metric, or until = "end"'
            )
        return self

    @property
    def numbers(self) -> tuple[float, ...]:
        """The values that the study gives as numbers."""
        return self.values or (() if self.value is None else (self.value,))

    @property
    def ends_early(self) -> bool:
        """Return whether runs end once they have reached the target."""
        return self.until == "reached"

    @property
    def arm_and_step(self) -> tuple[str, int] | None:
        """The two parts of `at`."""
        if self.at is None:
            return None
        arm, _, step = self.at.rpartition("@")
        return arm, int(step)


class Report(Section):
    """Choices of the report."""

    across: Literal["pooled", "cells"] | None = None
    """With several cells, the headline pools them or has one line each.

    Default: pooled if all cells compare the same arms.
    """


class Exclusion(Section):
    """Combinations that are not run.

    A combination matches if its value on every path equals the given one, or is one of the given list.
    """

    reason: str = Field(min_length=1)
    where: dict[str, Any] = Field(min_length=1)

    def matches(self, values: Mapping[str, Any]) -> bool:
        return all(
            values[path] == wanted or _is_in(values[path], wanted) for path, wanted in self.where.items()
        )


class Seeds(Section):
    """Seeds by purpose; `audit` becomes the slowest axis of the study."""

    audit: int | tuple[int, ...] = ()
    tuning: int | tuple[int, ...] = ()


class Budget(Section):
    flops: float | None = Field(default=None, gt=0)
    """Counted FLOPs of all runs of the study and of its first stage together."""
    flops_per_run: Annotated[float, Field(gt=0)] | Literal["baseline"] | None = None
    """Counted FLOPs of each run, which sets its number of steps: a number, or those of the baseline's run in
    the same cell at its `train.steps`."""


class Tune(Section):
    """The tuning budget of each method, and the search (sweeps/tune/tuner.py)."""

    trials: int = Field(default=8, ge=1)
    flops: float | None = Field(default=None, gt=0)
    """Counted FLOPs of all trials of one method.

    Default: the cost of the cheapest method's trials at full length.
    """
    sampler: Literal["tpe", "qmc", "random", "grid"] = "tpe"
    startup: int = Field(default=5, ge=1)
    """Random trials before TPE uses results."""
    batch: int = Field(default=1, ge=1)
    """Trials of a method that are proposed together."""
    prune: float | None = Field(default=None, gt=0, lt=1)
    """p-value (Wilcoxon's signed ranks over seeds) below which a trial worse than the best ends early."""
    seed: int = Field(default=0, ge=0)
    space: dict[str, Dimension] = Field(default_factory=dict)
    """Dimensions by spec path, searched for every method."""
    methods: dict[str, dict[str, Dimension]] = Field(default_factory=dict)
    """Search spaces by method, instead of the declared ones."""


class Pretraining(Section):
    """The first stage of a study: another study, whose runs those of this one start from (`start.arm`)."""

    study: str = Field(min_length=1)
    """Name of the study, or its file."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of its runs by spec path. Data, split and execution are those of this study."""


class TuningCost(Section):
    """The cost of finding an arm's settings; an audit reads it from the study's folder."""

    trials: int
    flops: float
    seeds: tuple[int, ...]


class Study(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST)
    base: str
    baseline: str | None = None
    axes: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]
    """Values by spec path; the runs are their product."""
    zip: dict[str, dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]] = Field(default_factory=dict)
    """Axes that vary together, by name: values by spec path, the same number for each path."""
    exclude: tuple[Exclusion, ...] = ()
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings by method, for the arms of that method only."""
    set: dict[str, Any]
    """Fixed values by spec path."""
    target: Target = Target()
    labels: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    """Names to show, by method or by arm label."""
    report: Report = Report()
    seeds: Seeds = Seeds()
    """The tuning seeds only, because audit seeds are an axis."""
    budget: Budget = Budget()
    pretraining: Pretraining | None = None
    tune: Tune = Tune()
    tuning: dict[str, TuningCost] = Field(default_factory=dict)
    """Tuning costs by method; `flowrace tune` writes them."""

    def to_toml(self) -> str:
        later = {"methods", "labels", "report", "seeds", "budget", "pretraining", "tune", "tuning"}
        unused = {
            name
            for name in later
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True)
        }
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True, exclude=unused))

    @property
    def to_the_end(self) -> Study:
        """The same study with runs that go to their last step."""
        ends: dict[str, None] = {name: None for name in ("until", *END_SETTINGS)}
        return self.model_copy(update={"target": self.target.model_copy(update=ends)})

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        return tuple(_seed_list(self.seeds.tuning, FIRST_TUNING_SEED))

    @property
    def paths(self) -> list[str]:
        """The spec paths in which the runs differ."""
        return [*self.axes, *(path for zipped in self.zip.values() for path in zipped)]


def load_study(source: str, overrides: Iterable[str] = ()) -> Study:
    """Read a study by name or from a TOML file, with overrides `a.b=v`.

    They set fields of all runs, or with `methods.repa.layer=4` of one method's runs.

    Raises `UserError` for anything unknown or of the wrong type, and for two settings of one field.
    """
    return study_of(load_study_table(source), source, overrides)


def study_of(table: Mapping[str, Any], source: str, overrides: Iterable[str] = ()) -> Study:
    """Return the study of a table that `source` contains; see `load_study`."""
    methods = _method_tables(table, source)
    if not isinstance(table.get("zip", {}), Mapping):
        raise UserError(
            f'{source}: zip must be a table of axes, for example [zip.size] "backbone.size" = [...]'
        )
    axes, fixed = _paths(table, "axes", source), _paths(table, "set", source)
    first = _first_stage(table, source)
    zipped = {name: flatten(axis) for name, axis in table.get("zip", {}).items() if isinstance(axis, Mapping)}
    for path, value in axes.items():
        if not isinstance(value, list):
            raise UserError(f"{source}: axes.{path} = {format_value(value)}: expected a list of values")
    for override in overrides:
        path, value = parse_override(override)
        if path.startswith(FIRST_STAGE):
            first = _with_first_stage(first, path.removeprefix(FIRST_STAGE), value, override)
            continue
        if path.startswith("methods."):
            set_path(methods, *_under_methods(path, value))
            continue
        _refuse_setting_of_study(override, path, value)
        varied = {nested_path(axis) for axis in (*axes, *(name for own in zipped.values() for name in own))}
        if nested_path(path) in varied:
            raise UserError(f"--set {override}: {path} is an axis of this study; edit the study instead")
        fixed = {old: v for old, v in fixed.items() if old == path or nested_path(old) != nested_path(path)}
        fixed |= flatten({path: value})
    table = {**table, "zip": {**table.get("zip", {}), **zipped}} if zipped else table
    axes, table = _with_seeds(table, axes, source)
    table = {**table, "axes": axes, "set": fixed, "methods": methods}
    if first is not None:
        table["pretraining"] = first
    study = _with_baseline_in_target(validate(Study, table, source))
    _check_paths(study, source)
    return study


def combinations(study: Study) -> list[tuple[dict[str, Any], str | None]]:
    """Return every combination of the axes in order, with the reason of its exclusion, or None."""
    axes = [[{path: value} for value in values] for path, values in study.axes.items()]
    for zipped in study.zip.values():
        axes.append([dict(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True)])
    found = []
    for parts in itertools.product(*axes):
        values = {path: value for part in parts for path, value in part.items()}
        found.append((values, next((rule.reason for rule in study.exclude if rule.matches(values)), None)))
    return found


def format_value(value: Any) -> str:
    """Return a value as text for a label or a table; a method with settings becomes `self_flow
    mask_ratio=0.0`."""
    if isinstance(value, Mapping) and "name" in value:
        settings = (f"{key}={format_value(v)}" for key, v in flatten(value).items() if key != "name")
        return " ".join([str(value["name"]), *settings])
    if isinstance(value, float) and len(json.dumps(value)) > 8:
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def run_label(values: Mapping[str, Any]) -> str:
    """Return a run's axis values as a short name for people, for example `repa seed 1 coefficient=0.5`."""
    method = values.get("method", values.get("method.name", ""))
    others = {path: v for path, v in values.items() if path not in ("seed", "method", "method.name")}
    if len(others) > 1:
        # What is measured on a run names it only if nothing else does.
        others.pop("eval.metrics", None)
    words = [f"{path.rpartition('.')[2]}={format_value(value)}" for path, value in others.items()]
    seed = [f"seed {values['seed']}"] if "seed" in values else []
    return " ".join([*filter(None, [format_value(method)]), *seed, *words])


def _is_in(value: Any, wanted: Any) -> bool:
    return isinstance(wanted, list | tuple) and value in wanted


def load_study_table(source: str) -> dict[str, Any]:
    """Return the table of a study by name or from a TOML file, as it is written."""
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        table = read_toml(path)
        base = str(table.get("base"))
        files = [file.resolve() for file in (path.parent / base, Path(base)) if file.is_file()]
        # An absolute path, because the study may be resumed from another working directory.
        if files:
            table["base"] = str(files[0])
        first = table.get("pretraining")
        if isinstance(first, Mapping):
            own = path.parent / str(first.get("study"))
            table["pretraining"] = {**first, "study": str(own.resolve())} if own.is_file() else first
        return table
    if source not in STUDIES.names():
        raise unknown("study", source, STUDIES.names(), see="flowrace list studies, or give a .toml file")
    return STUDIES.table(source)


def _paths(table: Mapping[str, Any], part: str, source: str) -> dict[str, Any]:
    """Return a table of values by spec path, which may be written with quoted dots or as nested tables."""
    if not isinstance(table.get(part, {}), Mapping):
        raise UserError(f'{source}: {part} must be a table, for example [{part}] "train.steps" = ...')
    return flatten(table.get(part, {}))


def _first_stage(table: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """Return the table of the first stage with its settings by spec path; None without one."""
    first = table.get("pretraining")
    if first is None or not isinstance(first, Mapping):
        return first
    return {**first, **({"set": _paths(first, "set", f"{source}: pretraining")} if "set" in first else {})}


def _with_first_stage(first: dict[str, Any] | None, path: str, value: Any, override: str) -> dict[str, Any]:
    """Return the table of the first stage with a setting of its runs; raises `UserError` without a stage."""
    if not isinstance(first, Mapping):
        raise UserError(f"--set {override}: this study has no [pretraining]; set fields of its runs")
    return {**first, "set": {**first.get("set", {}), **flatten({path: value})}}


def _method_tables(table: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the tables `[methods.NAME]` under current names, with dotted keys as nested tables."""
    methods = table.get("methods", {})
    if not isinstance(methods, Mapping):
        raise UserError(f"{source}: methods must hold a table for each method, for example [methods.repa]")
    nested: dict[str, Any] = {}
    for name, settings in methods.items():
        if not isinstance(settings, Mapping):
            raise UserError(f"{source}: methods.{name} = {settings}: expected a table [methods.{name}]")
        nested[name] = {}
        for path, value in flatten(settings).items():
            set_path(nested, *_under_methods(f"methods.{name}.{path}", value))
    return nested


def _under_methods(path: str, value: Any) -> tuple[str, Any]:
    path, value = nested_setting(path, value)
    return path.removeprefix("methods."), value


def _with_baseline_in_target(study: Study) -> Study:
    """Return the study with the baseline's own name in `target.at` replaced by `baseline`."""
    named = study.target.arm_and_step
    if named is None or named[0] != study.baseline:
        return study
    target = study.target.model_copy(update={"at": f"baseline@{named[1]}"})
    return study.model_copy(update={"target": target})


def _refuse_setting_of_study(override: str, path: str, value: Any) -> None:
    """Raise `UserError` for an override of the study itself, because `--set` sets fields of its runs."""
    part = path.partition(".")[0]
    if part not in Study.model_fields:
        return
    report = {"target.value": f"--target {value}", "target.metric": f"--metric {value}"}
    report["baseline"] = f"--baseline {value}"
    hint = f"; for a report alone, type: flowrace report DIR {report[path]}" if path in report else ""
    place = f"[{part}]" if "." in path else part
    raise UserError(
        f"--set {override}: '{part}' belongs to the study, and --set sets fields of its runs; edit {place} "
        f"in the study's file{hint}"
    )


def _with_seeds(
    table: Mapping[str, Any], axes: dict[str, Any], source: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the axes with the audit seeds as the first one, and the table with the tuning seeds as a
    list."""
    if "seeds" not in table:
        return axes, dict(table)
    seeds = validate(Seeds, table["seeds"], f"{source}: seeds")
    for purpose, given in seeds:
        if isinstance(given, int) and given < 1:
            raise UserError(
                f"{source}: seeds.{purpose} = {given}: expected a number of at least 1, or a list"
            )
    audit, tuning = _seed_list(seeds.audit, 0), _seed_list(seeds.tuning, FIRST_TUNING_SEED)
    if audit and "seed" in axes:
        raise UserError(f"{source}: seeds.audit and axes.seed set the same field; keep one of them")
    return ({"seed": audit, **axes} if audit else axes), {**table, "seeds": {"tuning": tuning}}


def _seed_list(seeds: int | tuple[int, ...], first: int) -> list[int]:
    return list(range(first, first + seeds)) if isinstance(seeds, int) else list(seeds)


def _check_paths(study: Study, source: str) -> None:
    """Raise `UserError` if one setting hides another: every path occurs once, and no path is inside
    another."""
    for name, zipped in study.zip.items():
        if len({len(values) for values in zipped.values()}) > 1:
            lengths = ", ".join(f"{path} has {len(values)}" for path, values in zipped.items())
            raise UserError(f"{source}: zip.{name}: every path needs the same number of values; {lengths}")
    for rule in study.exclude:
        for path in rule.where:
            if path not in study.paths:
                raise unknown("axis", path, study.paths, see=f"exclude.where in {source}")
        if not any(rule.matches(values) for values, _ in combinations(study)):
            raise UserError(
                f"{source}: the exclusion '{rule.reason}' matches no run; correct its where, or remove it"
            )
    paths = [nested_path(path) for path in (*study.paths, *study.set)]
    for one, other in itertools.combinations(paths, 2):
        if f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}."):
            raise UserError(f"{source}: '{one}' and '{other}' set the same field; keep one of them")
