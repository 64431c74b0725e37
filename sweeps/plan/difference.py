"""The difference of two studies: runs of only one, fields in which runs differ, and their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.encoder_fields import without_locations
from harness.config.fields import belongs, spec_fields
from harness.config.parts import nested_path
from harness.errors import UserError
from harness.files.files import read_toml
from harness.records.flatten import flatten
from harness.records.record import SPEC
from harness.records.study_folder import PlanEntry, StudyFolder
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.study import load_study, run_label

FEW = 4
"""The largest number of fields in which two runs of a pair differ."""
SETTINGS = ("baseline", "target", "labels", "budget")
"""The parts of a study that are compared in addition to its runs."""


@dataclass(frozen=True)
class ComparedRun:
    """A run of a study: its label, and by dotted path every field that can change its results."""

    id: str
    label: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class ComparedStudy:
    """A study given by name, by file or by its folder."""

    settings: Mapping[str, Any]
    """The values of `SETTINGS` by dotted path."""
    runs: Sequence[ComparedRun]


@dataclass(frozen=True)
class Change:
    """A field, its value in each of two studies, and the runs (or pairs of runs) in which it differs."""

    field: str
    a: Any
    b: Any
    runs: tuple[str, ...] = ()


def read_side(source: str) -> ComparedStudy:
    """Return the study of a name, a file or a folder.

    Raises `UserError` for a study that cannot be planned, and for a folder without a plan.
    """
    if not Path(source).is_dir():
        study = load_study(source)
        runs = [_planned(run) for run in make_plan(study).runs]
        return ComparedStudy(_settings(study.model_dump(mode="json")), runs)
    folder = StudyFolder(Path(source))
    entries = folder.required_plan.runs
    found = {entry.id: file for entry in entries if (file := _spec_file(folder, entry.id))}
    planned = {} if len(found) == len(entries) else _planned_again(folder)
    runs = [planned.get(entry.id) or _recorded(entry, found.get(entry.id)) for entry in entries]
    return ComparedStudy(_settings(folder.study), runs)


def field_changes(a: Sequence[ComparedRun], b: Sequence[ComparedRun]) -> list[Change]:
    """Return the fields in which paired runs differ, those of most pairs first.

    Runs of one id are a pair, and so are runs that differ in few fields, the most similar ones first.
    """
    found: dict[str, Change] = {}
    for one, other in _pairs(a, b):
        for field, values in _differences(one, other).items():
            change = found.get(f"{field} {values}", Change(field, *values))
            label = one.label if one.label == other.label else f"{one.label} -> {other.label}"
            found[f"{field} {values}"] = Change(field, *values, (*change.runs, label))
    return sorted(found.values(), key=lambda change: (-len(change.runs), change.field))


def setting_changes(a: ComparedStudy, b: ComparedStudy) -> list[Change]:
    """Return the settings of the studies themselves that differ, for example `target.value`."""
    paths = dict.fromkeys([*a.settings, *b.settings])
    values = {path: (a.settings.get(path), b.settings.get(path)) for path in paths}
    return [Change(path, *pair) for path, pair in values.items() if pair[0] != pair[1]]


def _pairs(a: Sequence[ComparedRun], b: Sequence[ComparedRun]) -> list[tuple[ComparedRun, ComparedRun]]:
    by_id = {run.id: run for run in b}
    same = [(run, by_id[run.id]) for run in a if run.id in by_id]
    shared = {run.id for run, _ in same}
    left, right = ([run for run in runs if run.id not in shared] for runs in (a, b))
    near = sorted(
        (len(_differences(one, other)), one.label != other.label, i, j)
        for i, one in enumerate(left)
        for j, other in enumerate(right)
    )
    taken: dict[int, int] = {}
    for distance, _, i, j in near:
        if distance <= FEW and i not in taken and j not in taken.values():
            taken[i] = j
    return [*same, *((left[i], right[j]) for i, j in sorted(taken.items()))]


def _differences(one: ComparedRun, other: ComparedRun) -> dict[str, tuple[Any, Any]]:
    paths = dict.fromkeys([*one.fields, *other.fields])
    values = {path: (one.fields.get(path), other.fields.get(path)) for path in paths}
    return {path: pair for path, pair in values.items() if pair[0] != pair[1]}


def _planned(run: PlannedRun) -> ComparedRun:
    return ComparedRun(run.id, run.label, _fields(run.spec.model_dump(mode="json")))


def _spec_file(folder: StudyFolder, run: str) -> Path | None:
    """Return the spec in a run's record, else the one that a launcher was given, if there is one."""
    files = (folder.path / run / SPEC, folder.spec_file(run))
    return next((file for file in files if file.is_file()), None)


def _planned_again(folder: StudyFolder) -> dict[str, ComparedRun]:
    """Return the runs of a folder by id, from its study; none if the study can no longer be planned."""
    try:
        runs = make_plan(load_study(str(folder.study_file))).runs
    except UserError:
        return {}
    return {run.id: _planned(run) for run in runs}


def _recorded(entry: PlanEntry, file: Path | None) -> ComparedRun:
    """Return a run with the fields of its spec, or without one with the values of its axes."""
    fields = _fields(read_toml(file)) if file else flatten(entry.values)
    return ComparedRun(entry.id, run_label(entry.values), fields)


def _fields(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec's fields under their current names, with the defaults of fields that it lacks."""
    defaults = {field.path: field.default for field in spec_fields()}
    given = {nested_path(path): value for path, value in flatten(spec).items()}
    fields = without_locations(defaults | given)
    found = {path: value for path, value in fields.items() if belongs(path) != "execution"}
    return _without_none(found)


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in fields.items() if value is not None}


def _settings(study: Mapping[str, Any]) -> dict[str, Any]:
    return _without_none(flatten({name: study[name] for name in SETTINGS if name in study}))
