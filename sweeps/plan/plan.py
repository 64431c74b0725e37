"""From a study to its runs: exact, content-addressed, always in the same order (study.py says what a study is).

What its exclusions name is left out, and so is what cannot run on its data (an encoder of images on sounds); both with the
reason, which the report repeats.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.assembly.compatibility import Unsuited
from harness.assembly.resolve import load_table, resolve
from harness.config.parts import nested_setting
from harness.config.spec import RunSpec
from harness.config.tables import set_path
from harness.errors import UserError, unknown
from harness.files.files import read_toml, write_atomic
from harness.records.flatten import flatten
from harness.records.study_folder import PLAN, STUDY
from sweeps.plan.study import Study, combinations, label, shown


@dataclass(frozen=True)
class Cell:
    """One run of a study: the value of every axis, and the spec that comes of them."""

    values: dict[str, Any]
    spec: RunSpec

    @cached_property
    def id(self) -> str:
        return self.spec.id

    def with_threads(self, threads: int) -> Cell:
        """The same run with so many CPU threads; its id stays."""
        runtime = self.spec.runtime.model_copy(update={"threads": threads})
        return replace(self, spec=self.spec.model_copy(update={"runtime": runtime}))

    @property
    def label(self) -> str:
        """For people: `repa seed 1 coefficient=0.5`."""
        return label({"method.name": self.spec.method.name, "seed": self.spec.seed} | self.values)


@dataclass(frozen=True)
class LeftOut:
    """A combination of a study that is not run, and why."""

    values: dict[str, Any]
    reason: str


@dataclass(frozen=True)
class Plan:
    """The runs of a study in the order in which they start, and what it leaves out."""

    cells: list[Cell]
    left_out: list[LeftOut]


def plan(study: Study) -> list[Cell]:
    """The runs of a study alone; see `whole_plan`."""
    return whole_plan(study).cells


def whole_plan(study: Study) -> Plan:
    """Runs and what is left out; the same study gives the same ids in the same order.

    Raises `UserError` for a setting that no run can have, for a study that leaves out everything, for two runs with one id,
    for a baseline or a target metric that no run has, and for a run on a tuning seed.
    """
    found = _sorted_out(study)
    _check_some(study, found)
    cells = found.cells
    _check_distinct(study, cells)
    _check_impartial(study, cells)
    _check_seeds(study, cells)
    _check_baseline(study, found)
    metrics = {metric for cell in cells for metric in cell.spec.eval.metrics}
    if study.target.metric not in {None, *metrics}:
        raise unknown("target metric", study.target.metric, metrics)
    return found


def write_plan(study: Study, whole: Plan, directory: Path) -> None:
    """Write `study.toml` and `plan.json` into a study's folder, for resuming and for the report.

    Raises `UserError` when the folder holds another study or cannot be written.
    """
    if (directory / STUDY).exists() and (held := read_toml(directory / STUDY).get("name")) != study.name:
        raise UserError(f"{directory} holds the study '{held}', not '{study.name}'; choose another --out")
    runs = [{"id": cell.id, "cell": cell.values} for cell in whole.cells]
    left_out = [{"cell": left.values, "reason": left.reason} for left in whole.left_out]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / STUDY, study.to_toml().encode())
        write_atomic(directory / PLAN, json.dumps({"runs": runs, "excluded": left_out}, indent=1).encode())
    except OSError as error:
        raise UserError(f"cannot write the folder {directory}: {error.strerror}") from error


def _sorted_out(study: Study) -> Plan:
    base = load_table(study.base)
    for path, value in study.set.items():
        set_path(base, *nested_setting(path, value))
    found = [
        _cell_or_why(study, base, values) if reason is None else LeftOut(values, reason)
        for values, reason in combinations(study)
    ]
    return Plan([x for x in found if isinstance(x, Cell)], [x for x in found if isinstance(x, LeftOut)])


def _cell_or_why(study: Study, base: Mapping[str, Any], values: dict[str, Any]) -> Cell | LeftOut:
    try:
        return _cell(study, base, values)
    except Unsuited as unsuited:
        return LeftOut(values, unsuited.why)


def _cell(study: Study, base: Mapping[str, Any], values: dict[str, Any]) -> Cell:
    from harness.data.pin import pinned

    data = copy.deepcopy(dict(base))
    for path, value in values.items():
        set_path(data, *nested_setting(path, value))
    where = ", ".join([f"study {study.name}", *(f"{path} = {shown(v)}" for path, v in values.items())])
    return Cell(values, pinned(resolve(data, where=where)))


def _check_some(study: Study, found: Plan) -> None:
    if not found.cells:
        reasons = "; ".join(dict.fromkeys(left.reason for left in found.left_out))
        raise UserError(f"study {study.name} leaves out every run: {reasons}")


def _check_baseline(study: Study, found: Plan) -> None:
    methods = {cell.spec.method.name for cell in found.cells}
    if study.baseline in {None, *methods}:
        return
    for left in found.left_out:
        if study.baseline == flatten(left.values).get("method.name"):
            raise UserError(f"study {study.name} leaves out its baseline '{study.baseline}': {left.reason}")
    raise unknown("baseline", study.baseline, methods)


def _check_distinct(study: Study, cells: Iterable[Cell]) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        twin = seen.setdefault(cell.id, cell)
        if twin is not cell:
            raise UserError(
                f"study {study.name}: two of its runs are one and the same run ({cell.id}): {_named(twin)} and "
                f"{_named(cell)}; remove one, or an axis that cannot change results"
            )


def _check_seeds(study: Study, cells: Iterable[Cell]) -> None:
    """No run is judged by a seed that settings were tuned on."""
    told = {seed for tuned in study.tuning.values() for seed in tuned.seeds}
    if both := {cell.spec.seed for cell in cells} & {*study.seeds.tuning, *told}:
        seeds = ", ".join(map(str, sorted(both)))
        raise UserError(
            f"study {study.name}: seed {seeds} is both a tuning seed and an audit seed; give them apart in [seeds]"
        )


def _check_impartial(study: Study, cells: Iterable[Cell]) -> None:
    """No arm may be measured by nothing but a network that some arm aligns to."""
    from harness.evaluation.metric_names import check_impartial, favoured

    cells = list(cells)
    encoders = {encoder.name for cell in cells for encoder in cell.spec.method.needs().encoders}
    for metrics in {cell.spec.eval.metrics for cell in cells}:
        check_impartial(metrics, favoured(metrics, encoders), f"study {study.name}")


def _named(cell: Cell) -> str:
    return "(" + ", ".join(f"{path} = {shown(value)}" for path, value in cell.values.items()) + ")"
