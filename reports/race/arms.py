"""Arms: the runs whose specs differ only in the seed and in fields that cannot change results."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from harness.config.parts import flat_path
from harness.config.spec import HASHED_IF_SET, NOT_HASHED, RunSpec
from harness.errors import UserError, unknown
from harness.records.record import Record

ENCODER_NOT_HASHED = ("weights", "download")
"""Of an encoder: the sections of methods are read as data, so these two are named here; the others come
from `RunSpec`."""
FURTHER = "method.further"
"""Where a method's further encoders stand, a list of tables."""


@dataclass(frozen=True)
class RaceArm:
    """The runs that differ in nothing but their seed."""

    label: str
    """The method, with the fields that distinguish it from other arms."""
    fields: Mapping[str, Any]
    """The spec by dotted path, without the seed and what is not hashed."""
    runs: Mapping[int, Record]
    """By seed, ascending."""

    @property
    def method(self) -> str:
        return str(self.fields["method.name"])

    @property
    def encoder(self) -> str | None:
        return self.fields.get("method.encoder.name")


def arms_of(records: Sequence[Record]) -> list[RaceArm]:
    """Return records grouped into arms, in order of their labels (numbers by value).

    Raises `UserError` when two runs have the same arm and seed, for only one of them can count.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps(arm_fields(record.spec), sort_keys=True), []).append(record)
    fields = {key: arm_fields(runs[0].spec) for key, runs in groups.items()}
    labels = labels_of(fields)
    arms = [RaceArm(labels[key], fields[key], _by_seed(labels[key], runs)) for key, runs in groups.items()]
    return sorted(arms, key=lambda arm: _natural(arm.label))


def arm_fields(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec by dotted path, without `seed` and the fields that the run id does not hash: a newer
    field has its default in new records and is absent from old ones."""
    of_encoder = (f"method.encoder.{name}" for name in ENCODER_NOT_HASHED)
    free = _free_at(RunSpec) | dict.fromkeys(("seed", *of_encoder), ())
    fields = {
        path: value
        for path, value in flatten(spec).items()
        if path not in free or (free[path] and value not in free[path])
    }
    if "method.name" not in fields:
        raise UserError("a run's spec must have method.name")
    return fields | {path: _hashed_of(value) for path, value in fields.items() if path == FURTHER}


def _hashed_of(encoders: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: v for name, v in one.items() if name not in ENCODER_NOT_HASHED} for one in encoders]


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def differences(arms: Sequence[RaceArm]) -> list[tuple[str, list[Any]]]:
    """Return the fields in which arms differ, by path, with one value for each arm; None if it is empty
    or not a field."""
    fields = [{path: value for path, value in arm.fields.items() if value != ""} for arm in arms]
    return [(path, [own.get(path) for own in fields]) for path in differing_paths(fields)]


def find_arm(arms: Sequence[RaceArm], name: str, kind: str = "baseline") -> RaceArm:
    """Return the arm with this label, or the only one of this method; raises `UserError` with the nearest
    match."""
    exact = [arm for arm in arms if arm.label == name]
    same = exact or [arm for arm in arms if arm.method == name]
    if not same:
        raise unknown(kind, name, [arm.label for arm in arms])
    if len(same) > 1:
        names = "; ".join(f"'{arm.label}'" for arm in same)
        raise UserError(f"{kind} '{name}' matches more than one arm ({names}); give one of these labels")
    return same[0]


def labels_of(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the method name, with the fields that distinguish arms in brackets.

    The method's own fields are compared with arms of the same method, all other fields with all arms.
    """
    shared = naming(
        [path for path in differing_paths(fields.values()) if not path.startswith("method.")], fields
    )
    labels = {}
    for key, own in fields.items():
        same = [other for other in fields.values() if other["method.name"] == own["method.name"]]
        paths = [p for p in differing_paths(same) if p.startswith("method.")] + shared
        said = [setting(path, own[path]) for path in paths if path in own]
        labels[key] = str(own["method.name"]) + (f" ({', '.join(said)})" if said else "")
    return labels


def naming(paths: Sequence[str], fields: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Choose the differing fields used as arm labels; eval.metrics is used only when nothing else differs."""
    rest = [path for path in paths if path != "eval.metrics"]
    kinds = [
        len({repr([own.get(path) for path in some]) for own in fields.values()}) for some in (paths, rest)
    ]
    return rest if kinds[0] == kinds[1] else list(paths)


def setting(path: str, value: Any) -> str:
    """Return a field and its value for people: `mask_ratio = 0`, `backbone.size = S`."""
    said = f"{value:.10g}" if isinstance(value, float) else str(value)
    return f"{path.removeprefix('method.').removesuffix('.name')} = {said}"


def _natural(label: str) -> list[tuple[float, str]]:
    """Return a key that orders texts by their words and the numbers in them by value."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    return [(float(part), "") if i % 2 else (math.inf, part) for i, part in enumerate(parts)]


def differing_paths(fields: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the paths on which these flat specs are not all alike, sorted."""
    fields = list(fields)
    paths = sorted({path for own in fields for path in own})
    return [path for path in paths if any(own.get(path) != fields[0].get(path) for own in fields)]


def _by_seed(label: str, runs: Sequence[Record]) -> dict[int, Record]:
    by_seed: dict[int, Record] = {}
    for record in runs:
        seed = record.spec.get("seed", 0)
        if seed in by_seed:
            raise UserError(
                f"two runs of {label} with seed {seed}: {by_seed[seed].path} and {record.path}; report on only one of them"
            )
        by_seed[seed] = record
    return dict(sorted(by_seed.items()))


def _free_at(model: type[BaseModel], prefix: str = "") -> dict[str, tuple[Any, ...]]:
    """Return the fields that the run id does not hash, with the values at which they are not hashed; ()
    means never."""
    paths: dict[str, tuple[Any, ...]] = {}
    for name, info in model.model_fields.items():
        if info.json_schema_extra == NOT_HASHED:
            paths[prefix + name] = ()
        elif info.json_schema_extra == HASHED_IF_SET:
            paths[flat_path(prefix + name)] = (info.default,)
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            paths |= _free_at(info.annotation, f"{prefix}{name}.")
    return paths
