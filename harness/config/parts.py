"""Settings of each part of a sample that has several, as tables `parts.KIND` of a section:
`[data.parts.audio] weight = 0.7`.

Version 0.1.0 gave each of them a field: `data.audio_weight`. Those names are read everywhere and translated
here. Files of a run and run ids keep them for the settings of that version, so that ids and records do not
change; the settings of another kind of part are written and hashed as `parts.KIND.NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer, model_validator

from harness.errors import UserError

FLAT_NAMES: dict[str, dict[str, tuple[str, str]]] = {
    "data": {
        "video_weight": ("video", "weight"),
        "audio_weight": ("audio", "weight"),
        "video_alone": ("video", "alone"),
        "audio_alone": ("audio", "alone"),
    },
    "backbone": {"patch_sound": ("audio", "patch")},
    "method": {"mask_ratio_audio": ("audio", "mask_ratio")},
}
"""By section, the fields of version 0.1.0: the kind of part and the setting."""


class HasParts(BaseModel):
    """Base of a section with a field `parts`: reads the flat names too, and writes them."""

    flat_names: ClassVar[Mapping[str, tuple[str, str]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_flat_names(cls, table: Any) -> Any:
        return _nested(table, cls.flat_names) if isinstance(table, Mapping) else table

    @model_serializer(mode="wrap")
    def _write_flat_names(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return flattened(dump(self), self.flat_names)


def flattened(table: Mapping[str, Any], flat_names: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """A dumped section with the flat names in the place of `parts`."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key != "parts":
            found[key] = value
            continue
        rest = {kind: dict(settings) for kind, settings in value.items()}
        for flat, (kind, name) in flat_names.items():
            if name in rest.get(kind, {}):
                found[flat] = rest[kind].pop(name)
        if rest := {kind: settings for kind, settings in rest.items() if settings}:
            found["parts"] = rest
    return found


def flat_path(path: str) -> str:
    """A spec path as files of a run have it.

    >>> flat_path("data.parts.audio.weight"), flat_path("train.steps")
    ('data.audio_weight', 'train.steps')
    """
    section, _, rest = path.partition(".")
    for flat, (kind, name) in FLAT_NAMES.get(section, {}).items():
        if rest == f"parts.{kind}.{name}":
            return f"{section}.{flat}"
    return path


def nested_path(path: str) -> str:
    """A spec path in its spelling of today.

    >>> nested_path("data.audio_weight"), nested_path("methods.self_flow.mask_ratio_audio")
    ('data.parts.audio.weight', 'methods.self_flow.parts.audio.mask_ratio')
    """
    table, _, last = path.rpartition(".")
    found = _flat_names_at(table).get(last)
    return f"{table}.parts.{found[0]}.{found[1]}" if found else path


def nested_setting(path: str, value: Any) -> tuple[str, Any]:
    """An override in its spelling of today: its path, and the flat names in a table that it sets."""
    try:
        return nested_path(path), _nested_at(path, value)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def nested_spec(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The raw table of a spec in its spelling of today. Raises `UserError` where it has a setting in both."""
    try:
        return {key: _nested_at(key, value) for key, value in table.items()}
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _flat_names_at(table: str) -> Mapping[str, tuple[str, str]]:
    if table.startswith("methods.") and table.count(".") == 1:
        table = "method"
    return FLAT_NAMES.get(table, {})


def _nested_at(path: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if path == "methods":
        return {name: _nested_at(f"methods.{name}", table) for name, table in value.items()}
    return _nested(value, _flat_names_at(path))


def _nested(table: Mapping[str, Any], flat_names: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    found = dict(table)
    for flat, (kind, name) in flat_names.items():
        if flat not in found:
            continue
        value = found.pop(flat)
        parts = found.get("parts", {})
        part = parts.get(kind, {}) if isinstance(parts, Mapping) else None
        # Another mistake: the model that this table is for reports it.
        if not isinstance(part, Mapping):
            continue
        if name in part:
            raise ValueError(f"{flat} and parts.{kind}.{name} set the same field; keep parts.{kind}.{name}")
        found["parts"] = {**parts, kind: {**part, name: value}}
    return found
