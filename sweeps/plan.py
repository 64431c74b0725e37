"""From a study to its runs: exact, content-addressed, always in the same order.

A study is a TOML file with one line of prose on top:

    name = "digits"
    base = "digits"                                     # a preset, or a file beside the study
    baseline = "flow"                                   # the method that the others are compared with
    [axes]                                              # any paths of the spec; the first axis varies slowest, so that
    seed = [0, 1, 2]                                    # seeds on top interleave the arms fairly
    "method.name" = ["flow", "repa"]
    [set]                                               # what all runs share
    "train.steps" = 1000
    [target]
    metric = "fd:local"
    value = 12.0
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import Field

from harness.errors import UserError, unknown
from harness.record import write_atomic
from harness.resolve import load_table, parse_override, resolve, set_path, validate
from harness.shelf import Shelf
from harness.spec import RunSpec, Section, read_toml
from harness.tracking import flatten

STUDY, PLAN = "study.toml", "plan.json"
STUDIES = Shelf("sweeps", "studies")
"""The studies that come with the package."""


class Target(Section):
    metric: str | None = None
    value: float | None = Field(None, gt=0)


class Study(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: str
    baseline: str | None = None
    axes: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]]
    """Values by spec path; the runs are their product."""
    set: dict[str, Any]
    """Fixed values by spec path."""
    target: Target = Target()

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


@dataclass(frozen=True)
class Cell:
    """One run of a study: the value of every axis, and the spec that comes of them."""

    values: dict[str, Any]
    spec: RunSpec

    @cached_property
    def id(self) -> str:
        return self.spec.id

    @property
    def label(self) -> str:
        """For people: `repa seed 1 coefficient=0.5`."""
        method = self.values.get("method")
        named = shown(method) if method else self.spec.method.name
        others = {path: v for path, v in self.values.items() if path not in ("seed", "method", "method.name")}
        words = [f"{path.rpartition('.')[2]}={shown(value)}" for path, value in others.items()]
        return " ".join([named, f"seed {self.spec.seed}", *words])


def load_study(source: str, overrides: Iterable[str] = ()) -> Study:
    """The study of a name or a TOML file, with overrides `a.b=v` of what all its runs share.

    Raises `UserError` for anything unknown or of the wrong type, and where two settings of one study meet.
    """
    table = _load(source)
    axes, fixed = _paths(table, "axes", source), _paths(table, "set", source)
    for path, value in axes.items():
        if not isinstance(value, list):
            raise UserError(f"{source}: axes.{path} = {shown(value)}: an axis is a list of values")
    for override in overrides:
        path, value = parse_override(override)
        if path in axes:
            raise UserError(f"--set {override}: {path} is an axis of this study; edit the study instead")
        fixed |= flatten({path: value})
    study = validate(Study, {**table, "axes": axes, "set": fixed}, source)
    _check_paths(study, source)
    return study


def plan(study: Study) -> list[Cell]:
    """The runs of a study in the order in which they start; the same study gives the same ids in the same order.

    Raises `UserError` for a setting that no run can have, for two runs with one id, and for a baseline or a target metric
    that no run has.
    """
    base = load_table(study.base)
    for path, value in study.set.items():
        set_path(base, path, value)
    combinations = itertools.product(*study.axes.values())
    cells = [_cell(study, base, dict(zip(study.axes, values, strict=True))) for values in combinations]
    _check_distinct(study, cells)
    methods = {cell.spec.method.name for cell in cells}
    if study.baseline is not None and study.baseline not in methods:
        raise unknown("baseline", study.baseline, methods)
    metrics = {metric for cell in cells for metric in cell.spec.eval.metrics}
    if study.target.metric not in {None, *metrics}:
        raise unknown("target metric", study.target.metric, metrics)
    return cells


def write_plan(study: Study, cells: Iterable[Cell], directory: Path) -> None:
    """Write `study.toml` and `plan.json` into a study's folder, for resuming and for the report.

    Raises `UserError` when the folder holds another study or cannot be written.
    """
    if (directory / STUDY).exists() and (held := read_toml(directory / STUDY).get("name")) != study.name:
        raise UserError(f"{directory} holds the study '{held}', not '{study.name}'; choose another --out")
    runs = [{"id": cell.id, "cell": cell.values} for cell in cells]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / STUDY, study.to_toml().encode())
        write_atomic(directory / PLAN, json.dumps({"runs": runs}, indent=1).encode())
    except OSError as error:
        raise UserError(f"cannot write the folder {directory}: {error.strerror}") from error


def shown(value: Any) -> str:
    """A value as it stands in a label or a table; a method with settings as `self_flow mask_ratio=0.0`."""
    if isinstance(value, Mapping) and "name" in value:
        settings = (f"{key}={shown(v)}" for key, v in flatten(value).items() if key != "name")
        return " ".join([value["name"], *settings])
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _load(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        table = read_toml(path)
        beside = path.parent / str(table.get("base"))
        return {**table, "base": str(beside)} if beside.is_file() else table
    if source not in STUDIES.names():
        raise unknown("study", source, STUDIES.names(), see="flowrace list studies, or give a .toml file")
    return STUDIES.table(source)


def _paths(table: Mapping[str, Any], part: str, source: str) -> dict[str, Any]:
    """A table of values by spec path, written with dots in quotes or as nested tables."""
    if not isinstance(table.get(part, {}), Mapping):
        raise UserError(f'{source}: {part} must be a table, as in [{part}] "train.steps" = ...')
    return flatten(table.get(part, {}))


def _cell(study: Study, base: Mapping[str, Any], values: dict[str, Any]) -> Cell:
    from harness.data.pin import pinned

    data = copy.deepcopy(dict(base))
    for path, value in values.items():
        set_path(data, path, value)
    where = ", ".join([f"study {study.name}", *(f"{path} = {shown(v)}" for path, v in values.items())])
    return Cell(values, pinned(resolve(data, where=where)))


def _check_paths(study: Study, source: str) -> None:
    """No setting may hide another one: a path once, and no path inside another."""
    paths = [*study.axes, *study.set]
    for one, other in itertools.combinations(paths, 2):
        if f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}."):
            raise UserError(f"{source}: '{one}' and '{other}' set the same field; keep one of them")


def _check_distinct(study: Study, cells: Iterable[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        twin = seen.setdefault(cell.id, cell)
        if twin is not cell:
            raise UserError(
                f"study {study.name}: two of its runs are one and the same run ({cell.id}): {_named(twin)} and "
                f"{_named(cell)}; remove one, or an axis that cannot change results"
            )


def _named(cell: Cell) -> str:
    return "(" + ", ".join(f"{path} = {shown(value)}" for path, value in cell.values.items()) + ")"
