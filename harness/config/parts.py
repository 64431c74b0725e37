"""Settings per part of a sample, in tables `parts.KIND` of a section: `[data.parts.audio] weight = 0.7`.

Version 0.1.0 had one field for each: `data.audio_weight`. These flat names are still accepted, and are
translated here. Files of a run and run ids keep them for the settings of that version, so that ids and
records do not change. Settings that came later are written and hashed as `parts.KIND.NAME`.
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
"""Section -> field of version 0.1.0 -> kind of part and name of the setting."""


class HasParts(BaseModel):
    """Base of a section with a field `parts`: accepts the flat names too, and writes them."""

    flat_names: ClassVar[Mapping[str, tuple[str, str]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_flat_names(cls, table: Any) -> Any:
        return _nested(table, cls.flat_names) if isinstance(table, Mapping) else table

    @model_serializer(mode="wrap")
    def _write_flat_names(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return flattened(dump(self), self.flat_names)


def flattened(table: Mapping[str, Any], flat_names: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Return a dumped section with its `parts` under their flat names, if they have some."""
    flat_table: dict[str, Any] = {}
    for key, value in table.items():
        if key != "parts":
            flat_table[key] = value
            continue
        rest = {kind: dict(settings) for kind, settings in value.items()}
        for flat, (kind, name) in flat_names.items():
            if name in rest.get(kind, {}):
                flat_table[flat] = rest[kind].pop(name)
        if rest := {kind: settings for kind, settings in rest.items() if settings}:
            flat_table["parts"] = rest
    return flat_table


def flat_path(path: str) -> str:
    """Return the name of a field in the files of a run.

    >>> flat_path("data.parts.audio.weight"), flat_path("train.steps")
    ('data.audio_weight', 'train.steps')
    """
    section, _, rest = path.partition(".")
    for flat, (kind, name) in FLAT_NAMES.get(section, {}).items():
        if rest == f"parts.{kind}.{name}":
            return f"{section}.{flat}"
    return path


def nested_path(path: str) -> str:
    """Return the current name of a field.

    >>> nested_path("data.audio_weight"), nested_path("methods.self_flow.mask_ratio_audio")
    ('data.parts.audio.weight', 'methods.self_flow.parts.audio.mask_ratio')
    """
    table, _, last = path.rpartition(".")
    setting = _flat_names_at(table).get(last)
    return f"{table}.parts.{setting[0]}.{setting[1]}" if setting else path


def nested_setting(path: str, value: Any) -> tuple[str, Any]:
    """Return an override's path and value under current names; the value may be a table of fields.

    Raises `UserError` if the table sets a field under both names.
    """
    try:
        return nested_path(path), _nested_at(path, value)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def nested_spec(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the raw table of a spec under current names.

    Raises `UserError` if it sets a field under both names.
    """
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
    nested = dict(table)
    for flat, (kind, name) in flat_names.items():
        if flat not in nested:
            continue
        value = nested.pop(flat)
        parts = nested.get("parts", {})
        part = parts.get(kind, {}) if isinstance(parts, Mapping) else None
        # The model that validates this table reports a part that is no table.
        if not isinstance(part, Mapping):
            continue
        if name in part:
            raise ValueError(f"{flat} and parts.{kind}.{name} set the same field; keep parts.{kind}.{name}")
        nested["parts"] = {**parts, kind: {**part, name: value}}
    return nested
