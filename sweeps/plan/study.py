"""What a study asks: its axes, what all runs share, what is left out and why.

A study is a TOML file with one line of prose on top:

    name = "digits"
    base = "digits"                                     # a preset, or a file beside the study
    baseline = "flow"                                   # the method that the others are compared with
    [axes]                                              # any paths of the spec; the first axis varies slowest, so that
    seed = [0, 1, 2]                                    # seeds on top interleave the arms fairly
    "method.name" = ["flow", "repa"]
    [zip.encoder]                                       # axes that go together, value by value
    "method.encoder.name" = ["local:tiny", "local:small"]
    "method.layer" = [1, 2]
    [[exclude]]                                         # combinations that are left out, and why
    reason = "flow reads no encoder"
    where = { "method.name" = "flow", "method.layer" = 2 }
    [set]                                               # what all runs share
    "train.steps" = 1000
    [target]
    metric = "fd:local"
    value = 12.0
    [seeds]                                             # instead of an axis: what is judged and what is tuned never share a
    audit = 3                                           # seed. A list, or how many: 0, 1, 2 and 1000, 1001
    tuning = 2
    [budget]
    flops = 1e15                                        # of all runs together, counted; what plans more is refused
    [tune]                                              # what `flowrace tune` may spend on a method, and where it looks
    trials = 8
    space."train.learning_rate" = { low = 1e-3, high = 1e-2, log = true }
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field

from harness.config.packaged import Shelf
from harness.config.parts import nested_path
from harness.config.spec import Section
from harness.config.tables import parse_override, validate
from harness.errors import UserError, unknown
from harness.files.files import read_toml
from harness.records.flatten import flatten
from sweeps.plan.search_space import Dimension

STUDIES = Shelf("sweeps", "studies")
"""The studies that come with the package."""
FIRST_TUNING_SEED = 1000
"""Of tuning seeds that are given as a number; audit seeds so given start at 0."""


class Target(Section):
    metric: str | None = None
    value: float | None = Field(None, gt=0)


class Exclusion(Section):
    """Combinations that are not run: those whose values are the ones given, or among them, on every path."""

    reason: str = Field(min_length=1)
    where: dict[str, Any] = Field(min_length=1)

    def holds(self, values: Mapping[str, Any]) -> bool:
        return all(
            values[path] == wanted or _among(values[path], wanted) for path, wanted in self.where.items()
        )


class Seeds(Section):
    """Seeds by purpose; `audit` becomes the slowest axis of the study."""

    audit: int | tuple[int, ...] = ()
    tuning: int | tuple[int, ...] = ()


class Budget(Section):
    flops: float | None = Field(None, gt=0)
    """Counted, of all runs of the study together."""


class Tune(Section):
    """What tuning may spend on each method, and how it searches (sweeps/tune/tuner.py)."""

    trials: int = Field(8, ge=1)
    flops: float | None = Field(None, gt=0)
    """Counted, of all trials of one method; None: what the cheapest method's trials cost at full length."""
    sampler: Literal["tpe", "qmc", "random", "grid"] = "tpe"
    startup: int = Field(5, ge=1)
    """Random trials before TPE looks at results."""
    batch: int = Field(1, ge=1)
    """Trials of a method that are proposed at a time."""
    prune: float | None = Field(None, gt=0, lt=1)
    """The p below which a trial that is worse than the best one, seed by seed, ends early (Wilcoxon's signed ranks)."""
    seed: int = Field(0, ge=0)
    space: dict[str, Dimension] = Field(default_factory=dict)
    """Searched for every method: dimensions by spec path."""
    methods: dict[str, dict[str, Dimension]] = Field(default_factory=dict)
    """By method, instead of the space that it declares."""


class Tuned(Section):
    """What was spent on the settings of an arm; an audit reads it from the study's folder."""

    trials: int
    flops: float
    seeds: tuple[int, ...]


class Study(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: str
    baseline: str | None = None
    axes: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]
    """Values by spec path; the runs are their product."""
    zip: dict[str, dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]] = Field(default_factory=dict)
    """Axes that go together: by name, values by spec path, as many for each."""
    exclude: tuple[Exclusion, ...] = ()
    set: dict[str, Any]
    """Fixed values by spec path."""
    target: Target = Target()
    seeds: Seeds = Seeds()
    """Of tuning; those of the audit are among the axes."""
    budget: Budget = Budget()
    tune: Tune = Tune()
    tuning: dict[str, Tuned] = Field(default_factory=dict)
    """By method, what its settings cost to find; `flowrace tune` writes it."""

    def to_toml(self) -> str:
        later = {"seeds", "budget", "tune", "tuning"}
        unused = {
            name
            for name in later
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True)
        }
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True, exclude=unused))

    @property
    def paths(self) -> list[str]:
        """The spec paths in which its runs differ."""
        return [*self.axes, *(path for zipped in self.zip.values() for path in zipped)]


def load_study(source: str, overrides: Iterable[str] = ()) -> Study:
    """The study of a name or a TOML file, with overrides `a.b=v` of what all its runs share.

    Raises `UserError` for anything unknown or of the wrong type, and where two settings of one study meet.
    """
    table = _load(source)
    if not isinstance(table.get("zip", {}), Mapping):
        raise UserError(f'{source}: zip must be a table of axes, as in [zip.size] "backbone.size" = [...]')
    axes, fixed = _paths(table, "axes", source), _paths(table, "set", source)
    zipped = {name: flatten(axis) for name, axis in table.get("zip", {}).items() if isinstance(axis, Mapping)}
    for path, value in axes.items():
        if not isinstance(value, list):
            raise UserError(f"{source}: axes.{path} = {shown(value)}: an axis is a list of values")
    for override in overrides:
        path, value = parse_override(override)
        varied = {nested_path(axis) for axis in (*axes, *(name for own in zipped.values() for name in own))}
        if nested_path(path) in varied:
            raise UserError(f"--set {override}: {path} is an axis of this study; edit the study instead")
        fixed = {old: v for old, v in fixed.items() if old == path or nested_path(old) != nested_path(path)}
        fixed |= flatten({path: value})
    table = {**table, "zip": {**table.get("zip", {}), **zipped}} if zipped else table
    axes, table = _seeded(table, axes, source)
    study = validate(Study, {**table, "axes": axes, "set": fixed}, source)
    _check_paths(study, source)
    return study


def combinations(study: Study) -> list[tuple[dict[str, Any], str | None]]:
    """Every combination of the axes in its order, with the reason for which it is left out, if it is."""
    axes = [[{path: value} for value in values] for path, values in study.axes.items()]
    for zipped in study.zip.values():
        axes.append([dict(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True)])
    found = []
    for parts in itertools.product(*axes):
        values = {path: value for part in parts for path, value in part.items()}
        found.append((values, next((rule.reason for rule in study.exclude if rule.holds(values)), None)))
    return found


def shown(value: Any) -> str:
    """A value as it stands in a label or a table; a method with settings as `self_flow mask_ratio=0.0`."""
    if isinstance(value, Mapping) and "name" in value:
        settings = (f"{key}={shown(v)}" for key, v in flatten(value).items() if key != "name")
        return " ".join([str(value["name"]), *settings])
    if isinstance(value, float) and len(json.dumps(value)) > 8:
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def label(values: Mapping[str, Any]) -> str:
    """The values of a run's axes for people: `repa seed 1 coefficient=0.5`."""
    method = values.get("method", values.get("method.name", ""))
    others = {path: v for path, v in values.items() if path not in ("seed", "method", "method.name")}
    if len(others) > 1:
        others.pop("eval.metrics", None)  # what is measured on a run names it where nothing else does
    words = [f"{path.rpartition('.')[2]}={shown(value)}" for path, value in others.items()]
    seed = [f"seed {values['seed']}"] if "seed" in values else []
    return " ".join([*filter(None, [shown(method)]), *seed, *words])


def _among(value: Any, wanted: Any) -> bool:
    return isinstance(wanted, list | tuple) and value in wanted


def _load(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        table = read_toml(path)
        base = str(table.get("base"))
        files = [file.resolve() for file in (path.parent / base, Path(base)) if file.is_file()]
        if files:  # which the study must find from wherever it goes on
            table["base"] = str(files[0])
        return table
    if source not in STUDIES.names():
        raise unknown("study", source, STUDIES.names(), see="flowrace list studies, or give a .toml file")
    return STUDIES.table(source)


def _paths(table: Mapping[str, Any], part: str, source: str) -> dict[str, Any]:
    """A table of values by spec path, written with dots in quotes or as nested tables."""
    if not isinstance(table.get(part, {}), Mapping):
        raise UserError(f'{source}: {part} must be a table, as in [{part}] "train.steps" = ...')
    return flatten(table.get(part, {}))


def _seeded(
    table: Mapping[str, Any], axes: dict[str, Any], source: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Audit seeds as the first axis, tuning seeds as a list."""
    if "seeds" not in table:
        return axes, dict(table)
    seeds = validate(Seeds, table["seeds"], f"{source}: seeds")
    for purpose, given in seeds:
        if isinstance(given, int) and given < 1:
            raise UserError(f"{source}: seeds.{purpose} = {given}: give how many, at least 1, or list them")
    audit, tuning = _listed(seeds.audit, 0), _listed(seeds.tuning, FIRST_TUNING_SEED)
    if audit and "seed" in axes:
        raise UserError(f"{source}: seeds.audit and axes.seed set the same field; keep one of them")
    return ({"seed": audit, **axes} if audit else axes), {**table, "seeds": {"tuning": tuning}}


def _listed(seeds: int | tuple[int, ...], first: int) -> list[int]:
    return list(range(first, first + seeds)) if isinstance(seeds, int) else list(seeds)


def _check_paths(study: Study, source: str) -> None:
    """No setting may hide another one: a path once, and no path inside another."""
    for name, zipped in study.zip.items():
        if len({len(values) for values in zipped.values()}) > 1:
            lengths = ", ".join(f"{path} has {len(values)}" for path, values in zipped.items())
            raise UserError(f"{source}: zip.{name}: every path needs as many values; {lengths}")
    for rule in study.exclude:
        for path in rule.where:
            if path not in study.paths:
                raise unknown("axis", path, study.paths, see=f"exclude.where in {source}")
        if not any(rule.holds(values) for values, _ in combinations(study)):
            raise UserError(
                f"{source}: the exclusion '{rule.reason}' leaves nothing out; mend its where, or remove it"
            )
    paths = [nested_path(path) for path in (*study.paths, *study.set)]
    for one, other in itertools.combinations(paths, 2):
        if f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}."):
            raise UserError(f"{source}: '{one}' and '{other}' set the same field; keep one of them")
