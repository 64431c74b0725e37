"""The data set that a command of `flowrace data` reads: a path, or the name of a data set, with --set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UserError


@dataclass(frozen=True)
class Use:
    """The use of a source by a command, for errors about fields that only training on its result reads."""

    what: str
    """For example `encoding`."""
    instead: Mapping[str, str] = field(default_factory=dict)
    """The option to give instead of a field of the data."""


def source_spec(source: str, overrides: tuple[str, ...], modality: str, use: Use) -> Any:
    """Return the `DataSpec` of SRC: a data set, or a path whose files have the codec's modality."""
    from harness.assembly.data_fields import check_fields
    from harness.config import registry
    from harness.config.data_spec import DataSpec
    from harness.config.parts import nested_setting
    from harness.config.tables import parse_override, set_path, validate

    if source in registry.names("dataset"):
        fields: dict[str, Any] = {"name": source}
    else:
        fields = {"name": _kind(Path(source), modality), "root": source}
    table: dict[str, Any] = {"data": fields}
    for override in overrides:
        path, value = parse_override(override)
        if not path.startswith("data."):
            raise UserError(
                f"--set {override}: only fields of the source can be set here, "
                "for example data.resolution=256"
            )
        set_path(table, *nested_setting(path, value))
    spec = validate(DataSpec, table["data"], f"SRC {source}")
    if spec.name == "latents":
        raise UserError(
            f"SRC {source}: latents are already encoded; give the data set that they were encoded from"
        )
    _check_training_fields(spec, use)
    dataset = registry.load("dataset", spec.name)
    check_fields(spec, dataset, dataset.modality)
    return spec


def _check_training_fields(spec: Any, use: Use) -> None:
    """Raise `UserError` if a field is set that only training reads."""
    for name in ("flip", "held_out", "workers"):
        value = getattr(spec, name)
        if value != type(spec).model_fields[name].default:
            raise UserError(
                f"data.{name} = {json.dumps(value)} applies to training on the latents, not to {use.what}; "
                f"{use.instead.get(name, 'leave it out')}"
            )


def _kind(path: Path, modality: str) -> str:
    if not path.exists():
        raise UserError(
            f"SRC {path}: no such file or folder, and no data set of that name; see: flowrace list datasets"
        )
    from harness.data.disk.kinds import image_kind

    if modality != "image":
        return {"video": "videos", "audio": "sounds"}[modality]
    return image_kind(path)
