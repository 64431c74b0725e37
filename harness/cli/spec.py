"""`flowrace spec`: every field of a spec with type, default, meaning, and what it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click
from rich import box
from rich.markup import escape
from rich.table import Column, Table

from harness.cli.explain import by_size
from harness.cli.method_facts import facts
from harness.config import registry
from harness.config.fields import MEANINGS, in_words, nearest, section_text, spec_fields
from harness.config.options import JSON_OPTION
from harness.errors import UserError
from harness.files.terminal import fitted, show

Row = dict[str, Any]
"""A `SpecField` as a table. A setting of a method also has its `method` and its `defaults` by size."""
EPILOG = """\b
Example:
  flowrace spec
  flowrace spec train.steps
  flowrace spec method.repa
  flowrace spec method.repa.layer --json
"""


@click.command(epilog=EPILOG)
@click.argument("field", required=False, metavar="[FIELD|SECTION|method.NAME]")
@JSON_OPTION
def spec(field: str | None, as_json: bool) -> None:
    """Print the fields of a spec with type, default, meaning, and whether they belong to the trajectory.

    A field that belongs to the trajectory can change the weights. One of evaluation is measured on a
    trajectory, the horizon is its length, and a field of execution cannot change results. FIELD is a field, a
    section or a method's settings.
    """
    rows = find(field)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif len(rows) == 1:
        _print_field(rows[0])
    else:
        _print_sections(rows)


def find(field: str | None) -> list[Row]:
    """Return the fields that a name selects: one field, those of a section, those of a method, or all.

    Raises `UserError` with the nearest fields for an unknown name.
    """
    rows = [asdict(one) for one in spec_fields()]
    if field is None:
        return [*rows, *_shared_settings()]
    if field == "method":
        return _shared_settings()
    if field.startswith("method."):
        return _of_methods(field)
    found = [row for row in rows if row["path"] == field or row["path"].startswith(f"{field}.")]
    if not found:
        known = [row["path"] for row in (*rows, *_all_settings())]
        raise _unknown(field, dict.fromkeys(known))
    return found


def _of_methods(field: str) -> list[Row]:
    """Return the settings of a method (`method.repa`), one of them (`method.repa.layer`), or those of every
    method that have a name (`method.layer`)."""
    _, name, *rest = field.split(".")
    if name in registry.names("method"):
        rows = method_settings(name)
        path = ".".join(["method", *rest])
        found = [row for row in rows if row["path"] == path or row["path"].startswith(f"{path}.")]
        if not found:
            known = [row["path"].replace("method.", f"method.{name}.", 1) for row in rows]
            raise _unknown(field, known)
        return found
    rows = _all_settings()
    found = [row for row in rows if row["path"] == field or row["path"].startswith(f"{field}.")]
    if not found:
        methods = [f"method.{name}" for name in registry.names("method")]
        raise _unknown(field, dict.fromkeys([*methods, *(row["path"] for row in rows)]))
    return found


def method_settings(name: str) -> list[Row]:
    """Return the settings of a method, with their defaults by backbone size."""
    about = facts(name)
    sizes = about.defaults
    return [
        {**field, "method": name, "defaults": {size: sizes[size].get(_setting(field)) for size in sizes}}
        for field in about.fields
        if field["path"] != "method.name"
    ]


def _all_settings() -> list[Row]:
    return [row for name in registry.METHODS for row in method_settings(name)]


def _shared_settings() -> list[Row]:
    """Return the name of the method and the settings that every method has."""
    name = next(field for field in facts("flow").fields if field["path"] == "method.name")
    return [{**name, "choices": registry.names("method")}, *method_settings("flow")]


def _setting(field: Mapping[str, Any]) -> str:
    return field["path"].removeprefix("method.")


def _unknown(field: str, known: Sequence[str] | Mapping[str, None]) -> UserError:
    return UserError(f"unknown field '{field}'.{in_words(nearest(field, known))} See: flowrace spec")


def _print_field(row: Row) -> None:
    click.echo(row["path"] + (f" (method {row['method']})" if "method" in row else ""))
    click.echo(fitted(f"  {row['meaning']}"))
    facts_of_it = {
        "type": row["type"],
        "default": _default(row),
        "limits": row["limits"],
        "choices": ", ".join(row["choices"]),
        "belongs to": f"{row['belongs']}: it {MEANINGS[row['belongs']]}",
    }
    for name, text in facts_of_it.items():
        if text:
            click.echo(f"  {name}: {text}")
    click.echo(f"  example: --set {row['path']}={_example(row)}")


def _print_sections(rows: Sequence[Row]) -> None:
    by_section: dict[str, list[Row]] = {}
    for row in rows:
        by_section.setdefault(_section(row), []).append(row)
    for section, members in by_section.items():
        show(_table(section, members))
    if any(section.startswith("method") for section in by_section):
        click.echo("Settings of a method: flowrace spec method.NAME, for example flowrace spec method.repa")


def _section(row: Row) -> str:
    """Return the title of a field's table: its first name, and the method of a setting.

    >>> _section({"path": "data.parts.audio.weight"}), _section({"path": "seed"})
    ('data', 'run')
    """
    first, dot, _ = row["path"].partition(".")
    return (f"method {row['method']}" if "method" in row else first) if dot else "run"


def _table(section: str, rows: Sequence[Row]) -> Table:
    columns = (
        Column("field", no_wrap=True),
        Column("type", overflow="fold"),
        Column("default", overflow="fold"),
        "limits or choices",
        "belongs to",
        Column("meaning", overflow="fold"),
    )
    about = section_text(section) if section in {row["path"].partition(".")[0] for row in rows} else ""
    title = section if not about or section == "method" else f"{section}: {about.partition(chr(10))[0]}"
    table = Table(*columns, title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        allowed = ", ".join(row["choices"]) or row["limits"]
        if row["path"] == "method.name":
            allowed = "see flowrace list methods"
        cells = (row["path"], row["type"], _default(row), allowed, row["belongs"], row["meaning"])
        table.add_row(*map(escape, cells))
    return table


def _default(row: Row) -> str:
    """Return a default as text, with the backbone sizes that it belongs to if it depends on them."""
    if "defaults" not in row:
        return _as_text(row["default"])
    return by_size({size: _as_text(value) for size, value in row["defaults"].items()})


# Any: a default is of the field's type.
def _as_text(value: Any) -> str:
    """Return a default as `--set` takes it; empty values as a dash.

    >>> _as_text(1e-4), _as_text(["fd:local"]), _as_text(None), _as_text(True)
    ('0.0001', '["fd:local"]', '-', 'true')
    """
    if value in (None, "", {}):
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def _example(row: Row) -> str:
    """Return a value for the example of a field."""
    default = row["defaults"]["B"] if "defaults" in row else row["default"]
    if row["choices"]:
        return row["choices"][-1]
    samples = {"int": "4", "float": "0.5", "bool": "true", "str": "NAME"}
    text = _as_text(default)
    return samples.get(row["type"].partition(" ")[0], "VALUE") if text == "-" else text
