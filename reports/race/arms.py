"""Arms: the runs whose specs differ only in the seed and in fields that cannot change weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from harness.config.encoder_fields import encoder_name, without_locations
from harness.config.parts import flat_path
from harness.config.section import HASHED_IF_SET, NOT_HASHED
from harness.config.spec import RunSpec
from harness.config.training_spec import DECAYS_TO_THE_END
from harness.errors import UserError, unknown
from harness.records.record import Record
from harness.records.targets import OF_SEED


@dataclass(frozen=True)
class RaceArm:
    """Runs that differ only in their seed."""

    label: str
    """The shown name: the method, with the fields that distinguish it from other arms, or a name from
    `[labels]`."""
    fields: Mapping[str, Any]
    """The spec by dotted path, without the seed and the fields that the run id leaves out."""
    runs: Mapping[int, Record]
    """By seed, ascending."""
    name: str = ""
    """The label without `[labels]`."""

    @property
    def method(self) -> str:
        return str(self.fields["method.name"])

    @property
    def encoder(self) -> str | None:
        return encoder_name(self.fields)

    def holds(self, planned: Mapping[str, Any]) -> bool:
        """Return whether a planned run with these axis values belongs to the arm.

        A field that the arm leaves out at its default has that value; others do not distinguish arms.
        """
        defaults = _unhashed(RunSpec)
        values = {flat_path(path): own for path, own in flatten(planned).items() if path != "seed"}
        return all(
            self.fields[path] == own if path in self.fields else own in (defaults.get(path) or (own,))
            for path, own in values.items()
        )


def arms_of(records: Sequence[Record], names: Mapping[str, str] | None = None) -> list[RaceArm]:
    """Return records grouped into arms, sorted by label (numbers by value).

    `names` are shown names by method or label. Raises `UserError` if two runs have the same arm and seed,
    because only one of them can count, and if two arms would have the same shown name.
    """
    groups = _grouped(records, trajectory_fields)
    if any(len({run.spec.get("seed", 0) for run in runs}) < len(runs) for runs in groups.values()):
        # Records of versions up to 0.1 can differ in evaluation or length alone.
        groups = _grouped(records, arm_fields)
        fields = {key: arm_fields(runs[0].spec) for key, runs in groups.items()}
    else:
        fields = {key: trajectory_fields(runs[0].spec) for key, runs in groups.items()}
    labels = labels_of(fields)
    shown = shown_labels(labels, fields, names or {})
    arms = [
        RaceArm(shown[key], fields[key], _by_seed(labels[key], runs), labels[key])
        for key, runs in groups.items()
    ]
    return sorted(arms, key=lambda arm: _natural(arm.name))


def shown_labels(
    labels: Mapping[str, str], fields: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]
) -> dict[str, str]:
    """Return labels with the shown names of `[labels]`; raises `UserError` if two would be the same."""
    shown = {key: shown_name(label, str(fields[key]["method.name"]), names) for key, label in labels.items()}
    for key, label in shown.items():
        same = [labels[other] for other, name in shown.items() if name == label]
        others = [name for name in same if name != labels[key]]
        if others and names:
            both = f"'{labels[key]}' and '{others[0]}'"
            raise UserError(f"{both} would both be shown as '{label}'; change one of their labels")
    return shown


def shown_name(label: str, method: str, names: Mapping[str, str]) -> str:
    """Return the shown name of a label: its own, or its method's followed by the distinguishing fields.

    >>> shown_name("repa (layer = 2)", "repa", {"repa": "REPA"})
    'REPA (layer = 2)'
    """
    return names.get(label) or names.get(method, method) + label.removeprefix(method)


def _grouped(
    records: Iterable[Record], fields_of: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(json.dumps(fields_of(record.spec), sort_keys=True), []).append(record)
    return groups


def trajectory_fields(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an arm: those that can change weights, without the seed.

    Evaluation and the number of steps are not among them, because a run can be measured again and extended.
    """
    fields = arm_fields(spec)
    decays = fields.get("train.decay", "none") in DECAYS_TO_THE_END
    return {
        path: value
        for path, value in fields.items()
        if not path.startswith("eval.") and (path != "train.steps" or decays)
    }


def arm_fields(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec by dotted path, without `seed` and the fields that cannot change results.

    Fields that are hashed only if set are left out at their default: old records do not have them.
    """
    ignored = _unhashed(RunSpec) | {"seed": ()} | dict.fromkeys(OF_SEED, ())
    fields = {
        path: value
        for path, value in without_locations(flatten(spec)).items()
        if path not in ignored or (ignored[path] and value not in ignored[path])
    }
    if "method.name" not in fields:
        raise UserError("a run's spec must have method.name")
    return fields


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one table, with keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def differences(arms: Sequence[RaceArm]) -> list[tuple[str, list[Any]]]:
    """Return the fields in which arms differ, as (path, one value per arm).

    The value is None if the field is empty or the arm does not have it.
    """
    specs = [{path: value for path, value in arm.fields.items() if value != ""} for arm in arms]
    return [(path, [spec.get(path) for spec in specs]) for path in differing_paths(specs)]


def find_arm(arms: Sequence[RaceArm], name: str, kind: str = "baseline") -> RaceArm:
    """Return the arm with this label or shown name, or the only arm of this method.

    Raises `UserError` with the nearest match if there is no such arm, or with the labels of all that match.
    """
    exact = [arm for arm in arms if name in (arm.label, arm.name)]
    matching = exact or [arm for arm in arms if arm.method == name]
    if not matching:
        raise unknown(kind, name, [arm.label for arm in arms])
    if len(matching) > 1:
        names = "; ".join(f"'{arm.label}'" for arm in matching)
        raise UserError(f"{kind} '{name}' matches more than one arm ({names}); give one of these labels")
    return matching[0]


def labels_of(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a label for each arm: the method name, then in brackets the fields that distinguish arms.

    A method's own fields are compared with arms of the same method, all other fields with all arms.
    """
    shared = label_paths(
        [path for path in differing_paths(fields.values()) if not path.startswith("method.")], fields
    )
    labels = {}
    for key, spec in fields.items():
        same_method = [other for other in fields.values() if other["method.name"] == spec["method.name"]]
        paths = [p for p in differing_paths(same_method) if p.startswith("method.")] + shared
        settings = [setting(path, spec[path]) for path in paths if path in spec]
        labels[key] = str(spec["method.name"]) + (f" ({', '.join(settings)})" if settings else "")
    return labels


def label_paths(paths: Sequence[str], fields: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Choose the differing fields used in arm labels; `eval.metrics` only if nothing else distinguishes."""
    rest = [path for path in paths if path != "eval.metrics"]
    kinds = [
        len({repr([spec.get(path) for path in chosen]) for spec in fields.values()})
        for chosen in (paths, rest)
    ]
    return rest if kinds[0] == kinds[1] else list(paths)


def setting(path: str, value: Any) -> str:
    """Return a field and its value for people: `mask_ratio = 0`, `backbone.size = S`."""
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return f"{path.removeprefix('method.').removesuffix('.name')} = {text}"


def _natural(label: str) -> list[tuple[float, str]]:
    """Return a sort key that orders the numbers in labels by value, for example `layer = 2` before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    return [(float(part), "") if i % 2 else (math.inf, part) for i, part in enumerate(parts)]


def differing_paths(fields: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the paths whose values are not the same in all of these flat specs, sorted."""
    specs = list(fields)
    paths = sorted({path for spec in specs for path in spec})
    return [path for path in paths if any(spec.get(path) != specs[0].get(path) for spec in specs)]


def _by_seed(label: str, runs: Sequence[Record]) -> dict[int, Record]:
    by_seed: dict[int, Record] = {}
    for record in runs:
        seed = record.spec.get("seed", 0)
        if seed in by_seed:
            raise UserError(
                f"two runs of {label} with seed {seed}: {by_seed[seed].path} and {record.path}; "
                "report on only one of them"
            )
        by_seed[seed] = record
    return dict(sorted(by_seed.items()))


def _unhashed(model: type[BaseModel], prefix: str = "") -> dict[str, tuple[Any, ...]]:
    """Return the fields that the run id leaves out, with the values at which it does; () means all values."""
    paths: dict[str, tuple[Any, ...]] = {}
    for name, info in model.model_fields.items():
        if info.json_schema_extra == NOT_HASHED:
            paths[prefix + name] = ()
        elif info.json_schema_extra == HASHED_IF_SET:
            paths[flat_path(prefix + name)] = (info.default,)
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            paths |= _unhashed(info.annotation, f"{prefix}{name}.")
    return paths
