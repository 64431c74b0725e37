"""The database of published numbers, each with its source and protocol.

The numbers are stored in `claims/*.toml`, one file per paper, edited by hand. A `[[table]]` holds the fields
that its numbers share; a number may override them. `[methods]`, `[models]` and `[metrics]` translate printed
names into names that are the same for all papers. `[[ratio]]`, `[[spread]]` and `[[comparison]]` refer to
numbers by id (check.py checks them).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import UserError
from harness.files.parse import parse_toml
from reports.literature.entries import (
    Comparison,
    Head,
    KnownSpread,
    Literature,
    LiteratureEntry,
    PrintedNumber,
    PublishedNumber,
    Ratio,
)

M = TypeVar("M", bound=BaseModel)
_KINDS = (PublishedNumber, Ratio, KnownSpread, Comparison)


def load_literature(folder: Path | None = None) -> Literature:
    """Return the published numbers that come with the package, and those of the user's folder.

    Raises `UserError`, which names file, entry and field, for an invalid file, a duplicate id, and a
    reference to an unknown id.
    """
    return _shipped() if folder is None else _checked([*_own(), *_files(folder)])


@cache
def _shipped() -> Literature:
    return _checked(_own())


def _own() -> list[Traversable]:
    found = resources.files("reports").joinpath("claims").iterdir()
    return sorted((file for file in found if file.name.endswith(".toml")), key=lambda file: file.name)


def _files(folder: Path) -> list[Traversable]:
    if not folder.is_dir():
        raise UserError(f"--claims {folder}: no such folder; give a folder of claims (*.toml)")
    found = sorted(folder.glob("*.toml"))
    if not found:
        raise UserError(f"--claims {folder}: no *.toml file in it; give a folder of claims")
    return list(found)


def _checked(files: Iterable[Traversable]) -> Literature:
    entries: dict[str, tuple[str, LiteratureEntry]] = {}
    for file in files:
        for entry in _read(file):
            if entry.id in entries:
                raise UserError(
                    f"{file}: the id '{entry.id}' is already used in {entries[entry.id][0]}; choose another"
                )
            entries[entry.id] = (str(file), entry)
    numbers = {name: entry for name, (_, entry) in entries.items() if isinstance(entry, PublishedNumber)}
    for file, entry in entries.values():
        for name in getattr(entry, "of", ()):
            if name not in numbers:
                near = difflib.get_close_matches(name, numbers, n=1)
                hint = f". Did you mean '{near[0]}'?" if near else ""
                raise UserError(
                    f"{file}: '{entry.id}': of refers to '{name}', but no number has this id{hint}"
                )
    found = [entry for _, entry in entries.values()]
    return Literature(
        tuple(numbers.values()),
        tuple(entry for entry in found if isinstance(entry, Ratio)),
        tuple(entry for entry in found if isinstance(entry, KnownSpread)),
        tuple(entry for entry in found if isinstance(entry, Comparison)),
    )


def _read(file: Traversable) -> Iterator[LiteratureEntry]:
    """Yield the entries of one file, numbers first."""
    try:
        raw = _plain(parse_toml(file.read_text(encoding="utf-8-sig"), parse_float=Decimal))
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: cannot be read as TOML: {error}") from error
    head = _valid(Head, raw, str(file))
    for index, table in enumerate(head.table, 1):
        yield from _numbers(head, table, f"{file}: table {index}")
    for name, kind in (("ratio", Ratio), ("spread", KnownSpread), ("comparison", Comparison)):
        for index, row in enumerate(getattr(head, name), 1):
            where = f"{file}: {name} {index} ('{row.get('id', 'without id')}')"
            yield _valid(kind, _numeric(row, where), where)


def _numbers(head: Head, table: Mapping[str, Any], where: str) -> Iterator[PublishedNumber]:
    shared = {key: value for key, value in table.items() if key != "numbers"}
    rows = table.get("numbers", ())
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{where}: numbers must be a list of at least one {{ id = ..., value = ..., ... }}")
    for index, row in enumerate(rows, 1):
        here = f"{where}, number {index} ('{row.get('id', 'without id')}')"
        printed = _valid(PrintedNumber, _numeric(shared | row, here), here)
        yield PublishedNumber(
            **dict(printed),
            paper=head.paper,
            title=head.title,
            arxiv=head.arxiv,
            arm=head.methods.get(printed.method, printed.method),
            rival=printed.baseline and head.methods.get(printed.baseline, printed.baseline),
            network=head.models.get(printed.model, printed.model),
            measure=head.metrics.get(printed.metric, printed.metric),
        )


def _plain(value: Any) -> Any:
    """Return the value with lists as tuples, because entries are frozen."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(_plain(item) for item in value) if isinstance(value, list) else value


def _numeric(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the row with decimals as floats, and with the number of printed places.

    The places are needed to judge rounding.
    """
    value = row.get("value")
    if not isinstance(value, Decimal):
        return dict(row)
    if not value.is_finite():
        raise UserError(f"{where}: value = {value}: must be finite")
    return {"places": -int(value.as_tuple().exponent)} | dict(row) | {"value": float(value)}


def _valid(model: type[M], data: Mapping[str, Any], where: str) -> M:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {_sentence(model, error.errors()[0])}") from error


def _sentence(model: type[BaseModel], detail: Mapping[str, Any]) -> str:
    field = ".".join(str(part) for part in detail["loc"] if part not in ("int", "float", "str"))
    if detail["type"] == "missing":
        return f"{field} is missing"
    if detail["type"] == "extra_forbidden":
        known = sorted(model.model_fields)
        near = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
        return f"unknown field '{field}' (known: {', '.join(known)})" + (
            f". Did you mean '{near[0]}'?" if near else ""
        )
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{field} = {detail['input']!r}: {message.replace('input', 'it', 1)}"


def select(numbers: Sequence[PublishedNumber], **wanted: str | None) -> list[PublishedNumber]:
    """Return the numbers whose fields have these values, ignoring case.

    `method`, `model` and `metric` match the printed name or the shared one. Raises `UserError` with the
    nearest match for a value that no number has.
    """
    found = list(numbers)
    for field, value in wanted.items():
        if value is None:
            continue
        names = {name for number in numbers for name in _names(number, field)}
        if value.casefold() not in {name.casefold() for name in names}:
            near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise UserError(
                f"no published number has the {field} '{value}'.{hint} See: flowrace claims --csv"
            )
        found = [n for n in found if value.casefold() in {name.casefold() for name in _names(n, field)}]
    return found


_SHARED = {"method": "arm", "model": "network", "metric": "measure"}


def _names(number: PublishedNumber, field: str) -> set[str]:
    return {getattr(number, field), getattr(number, _SHARED.get(field, field))}


@dataclass(frozen=True)
class PublishedCurve:
    """The values of one method during training, from one source and under one protocol."""

    steps: tuple[int, ...]
    values: tuple[float, ...]
    ids: tuple[str, ...]
    method: str
    paper: str
    source: str
    status: str
    dataset: str
    sampler: str
    guidance: str
    samples: int | None


_PROVENANCE = ("method", "paper", "source", "status", "dataset", "sampler", "guidance", "samples")


def published_curves(
    method: str,
    model: str,
    metric: str,
    *,
    dataset: str | None = None,
    least: int = 2,
    folder: Path | None = None,
) -> tuple[PublishedCurve, ...]:
    """Return published curves of at least `least` points, in file order; empty if nothing was published.

    `method` is flowrace's name or the printed one. `model` is the printed name or a size ("XL" is SiT-XL/2).
    `metric` is the printed name, ignoring case. The values have the protocol of their source, not that of the
    measured runs.
    """
    network = model if "/" in model else f"SiT-{model}/2"
    network = network if "-" in network else f"SiT-{network}"
    groups: dict[tuple[Any, ...], dict[int, PublishedNumber]] = {}
    for number in load_literature(folder).numbers:
        matches = method in _names(number, "method") and network in _names(number, "model")
        matches = matches and metric.casefold() in {name.casefold() for name in _names(number, "metric")}
        if matches and dataset in (None, number.dataset) and isinstance(number.steps, int):
            key = tuple(getattr(number, field) for field in _PROVENANCE)
            groups.setdefault(key, {}).setdefault(number.steps, number)
    return tuple(_curve(key, points) for key, points in groups.items() if len(points) >= least)


def _curve(key: tuple[Any, ...], points: Mapping[int, PublishedNumber]) -> PublishedCurve:
    row = [points[step] for step in sorted(points)]
    values = tuple(float(number.value) for number in row)
    return PublishedCurve(tuple(sorted(points)), values, tuple(number.id for number in row), *key)
