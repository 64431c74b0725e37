"""Nested tables of settings: overrides, merging, and validation that suggests the nearest field."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from harness.errors import UserError
from harness.files.parse import DEEPEST, parse_toml

SHOWN = 200
"""Characters of a path or a value that an error shows."""


def parse_override(text: str) -> tuple[str, Any]:
    """Split `a.b=v` into a path and a value: v is read as TOML, or as a plain string if it is not TOML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip() or not all(path.strip().split(".")):
        raise UserError(f"--set {text[:SHOWN]}: expected a.b=value, for example --set train.steps=100")
    try:
        return path.strip(), parse_toml(f"v = {value}")["v"]
    except ValueError:
        return path.strip(), value


def set_path(data: dict[str, Any], path: str, value: Any) -> None:
    """Set a value at a dotted path in nested tables, in place.

    Raises `UserError` if the path leads through a value that is no table.
    """
    *parents, last = path.split(".")
    if len(parents) > DEEPEST:
        raise UserError(f"{path[:SHOWN]}...: a field is at most {DEEPEST} tables deep")
    for name in parents:
        data = data.setdefault(name, {})
        if not isinstance(data, dict):
            raise UserError(f"{path}: '{name}' is a field with a value, not a table of fields")
    data[last] = value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested tables; if both have a value, that of `over` is taken."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def validate(
    model: type[BaseModel],
    data: Mapping[str, Any],
    where: str,
    suggest: Callable[[str], str] = lambda path: "",
) -> Any:
    """Return a model made from a table. Lists may be tuples and integers floats; nothing else is coerced.

    `suggest` returns the end of the message about an unknown field from its path in `data`. If that is empty,
    the nearest name at its place is suggested.

    Raises `UserError` with one sentence for each of the first five mistakes.
    """
    try:
        return model.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise UserError(
            "; ".join(_sentence(model, detail, where, suggest) for detail in error.errors()[:5])
        ) from error


def _sentence(
    model: type[BaseModel], detail: Mapping[str, Any], where: str, suggest: Callable[[str], str]
) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
        hint = suggest(_first_value(path, detail["input"])) or (f" Did you mean '{near[0]}'?" if near else "")
        return f"{where}: unknown key '{path[:SHOWN]}' (known here: {', '.join(known)}).{hint}"
    if detail["type"] == "missing":
        return f"{where}: {path} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    value = json.dumps(detail["input"], default=str)
    return f"{where}: {path[:SHOWN]} = {value if len(value) <= SHOWN else f'{value[:SHOWN]}...'}: {message}"


# Any: the value at an unknown key.
def _first_value(path: str, value: Any) -> str:
    """Return the dotted path of the first value in a table of fields, for example `trian.steps`."""
    while isinstance(value, Mapping) and value:
        key, value = next(iter(value.items()))
        path = f"{path}.{key}"
    return path


def _fields_at(model: type[BaseModel], loc: Iterable[Any]) -> list[str]:
    for part in loc:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        tables = [
            a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not tables:
            return []
        model = tables[0]
    return sorted(model.model_fields)
