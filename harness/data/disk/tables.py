"""Tables of labels next to files: `metadata.csv`, `.jsonl` and `.parquet`, and EDM's `dataset.json`."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

# Any: values of JSON.
from typing import Any, NamedTuple

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.disk.class_label import class_names
from harness.data.disk.labels import HIDDEN, Labels, label_column, most_classes, named_classes, unlabelled
from harness.errors import UserError, first_line, unknown
from harness.files.parse import parse_json
from metrics.files.parquet_files import FILE, TABLE, bounded_table, schema_of
from metrics.value import MetricError

EDM = "dataset.json"
"""The table of EDM, EDM2 and REPA."""


class Table(NamedTuple):
    """The rows of a table. Names of files are relative to the root of the data."""

    file: Path
    labels: dict[str, Any]
    """File -> label, in the order of the rows; None for every file if the table has no labels."""
    source: str
    """The source of the labels, for messages."""
    numbered: bool = False
    """Labels are class numbers from 0, whose gaps count as classes."""


def has_table(root: Path) -> bool:
    """Return whether a folder, or one of its folders, has a file with the name of a table."""
    with os.scandir(root) as entries:
        folders = [entry.name for entry in entries if entry.is_dir()]
    return any((root / base / name).is_file() for base in ("", *folders) for name in READERS)


def find_table(root: Path, spec: DataSpec, folder: str = "") -> Table | None:
    """Return the table in a folder, relative to the root, or in the root; None without a table.

    Raises `UserError` for a table that cannot be read, and for several tables.
    """
    for base in dict.fromkeys((folder, "")):
        files = [root / base / name for name in READERS if (root / base / name).is_file()]
        if len(files) > 1:
            raise UserError(
                f"{root / base} has {' and '.join(file.name for file in files)}, and which one has the "
                "labels is ambiguous; move one out of the folder"
            )
        for file in files:
            table = READERS[file.name](file, spec)
            if table is not None:
                prefix = f"{base}/" if base else ""
                return table._replace(labels={prefix + name: value for name, value in table.labels.items()})
    return None


def in_table_order(table: Table, files: Sequence[str]) -> list[str]:
    """Return files in the order of the rows, and those that are not listed at the end.

    Files that EDM's table numbers are in the order of their names, as EDM reads them.
    """
    if table.numbered or not table.labels:
        return list(files)
    known = set(files)
    return [
        *(name for name in table.labels if name in known),
        *(name for name in files if name not in table.labels),
    ]


def labels_of(root: Path, table: Table, files: Sequence[str], plural: str, split: str = "") -> Labels:
    """Return the label of every file, and the names of the classes.

    Rows of other splits are ignored. Raises `UserError` for files that are not listed, and for rows without
    file.
    """
    prefix, known = f"{split}/" if split else "", set(files)
    rows = {name: value for name, value in table.labels.items() if name.startswith(prefix)}
    for name in sorted(set(rows) - known)[:1]:
        raise UserError(
            f"{table.file} lists {name}, which does not exist, is not one of the {plural}, or is listed "
            "twice; correct or remove the row"
        )
    for name in sorted(known - set(rows))[:1]:
        raise UserError(
            f"{root / name} is not listed in {table.file.name}; add a row, or move it out of the folder"
        )
    values = [rows[name] for name in files]
    if hidden := sum(str(value) == str(HIDDEN) for value in values):
        problem = f"{table.source}: {hidden} of {len(values)} labels are hidden ({HIDDEN})"
        return unlabelled(len(values), problem)
    if not table.numbered:
        return named_classes([str(value) for value in values])
    names = tuple(map(str, range(max(values) + 1)))
    return Labels(np.array(values, dtype=np.int64), len(names), names)


def caption_rows(root: Path, folder: str = "") -> tuple[Path, str, list[dict[str, Any]]] | None:
    """Return the table of a folder, relative to the root, or of the root; None without a table of rows.

    It comes with the prefix of its names of files, and its rows.
    """
    for base in dict.fromkeys((folder, "")):
        for name, read in ROWS.items():
            if (file := root / base / name).is_file():
                return file, f"{base}/" if base else "", read(file)
    return None


def _csv(file: Path, spec: DataSpec) -> Table | None:
    return _of_rows(file, _csv_rows(file), spec)


def _csv_rows(file: Path) -> list[dict[str, Any]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as content:
            rows = list(csv.DictReader(content))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error) from error
    for number, row in enumerate(rows, start=1):
        # What DictReader calls the cells beyond the header.
        if None in row:
            raise UserError(
                f"{file}: row {number} has more cells than the header; put texts with commas in quotes"
            )
    return rows


def _jsonl(file: Path, spec: DataSpec) -> Table | None:
    return _of_rows(file, _jsonl_rows(file), spec)


def _jsonl_rows(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from error
    rows = [_parsed(line, file, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file} is not a readable table: expected one JSON object per line")
    return rows


# Any: a value of JSON.
def _parsed(line: str, file: Path, number: int) -> Any:
    try:
        return parse_json(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", first_line(error))
        raise UserError(
            f"{file} is not a readable table: line {number} is not JSON ({reason}); correct it"
        ) from error


def _parquet(file: Path, spec: DataSpec) -> Table | None:
    """Read the scalar columns of a table, because others hold no labels and may be large."""
    import pyarrow as pa

    try:
        schema = schema_of(file)
        names = [field.name for field in schema if not pa.types.is_nested(field.type)]
        rows = bounded_table(file, names).to_pylist()
    except MetricError as error:
        raise _unreadable(file, error) from error
    return _of_rows(file, _named(file, rows, class_names(schema)), spec)


def _parquet_rows(file: Path) -> list[dict[str, Any]]:
    try:
        return bounded_table(file, schema_of(file).names).to_pylist()
    except MetricError as error:
        raise _unreadable(file, error) from error


def _named(file: Path, rows: list[dict[str, Any]], classes: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Replace the class numbers of columns that the file declares as classes by the names of the classes."""
    for column, names in classes.items():
        for row in rows:
            value = row.get(column)
            if value in (None, HIDDEN):
                continue
            if not isinstance(value, int) or not 0 <= value < len(names):
                raise UserError(
                    f"{file}: '{column}' of {row.get(FILE)} is {value}, but the file declares {len(names)} "
                    "classes; correct it"
                )
            row[column] = names[value]
    return rows


def _of_rows(file: Path, rows: list[dict[str, Any]], spec: DataSpec) -> Table | None:
    """Return the labels of rows; None for a table of other facts, for example captions."""
    columns = [str(name) for name in dict.fromkeys(name for row in rows for name in row) if name]
    if not rows:
        raise UserError(
            f"{file} lacks a value of '{FILE}': it has no rows; add one for each file, or remove it"
        )
    label = label_column(columns, f"{file} has columns {', '.join(columns)}", spec.label_key)
    if not label:
        return None
    if label not in columns and columns:
        raise unknown(f"data.label_key in {file}", label, columns)
    for column in (FILE, label):
        if any(row.get(column) in (None, "") for row in rows):
            raise UserError(
                f"{file} lacks a value of '{column}' in some row; expected columns {FILE} and {label}"
            )
    twice = [name for name, times in Counter(str(row[FILE]) for row in rows).items() if times > 1]
    if twice:
        raise UserError(f"{file} lists {twice[0]}, which is listed twice; correct or remove a row")
    for row in rows:
        if not isinstance(row[label], str | int) or isinstance(row[label], bool):
            raise UserError(
                f"{file}: '{label}' of {row[FILE]} is {json.dumps(row[label])}, expected a number or a text; "
                "choose another column with data.label_key"
            )
    labels = {str(row[FILE]).replace("\\", "/").removeprefix("./"): row[label] for row in rows}
    return Table(file, labels, f"{file.name}, column '{label}'")


def _edm(file: Path, spec: DataSpec) -> Table | None:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    return edm_table(file, text)


def edm_table(file: Path, text: str) -> Table | None:
    """Read EDM's `dataset.json`: {"labels": [[file, class number], ...]}, or null for data without labels."""
    try:
        table = parse_json(text)
    except ValueError as error:
        raise _unreadable(file, error) from error
    if not isinstance(table, dict) or "labels" not in table:
        return None
    rows = table["labels"]
    if not rows:
        return Table(file, {}, f"none: {file.name} has no labels")
    if isinstance(rows, dict):
        rows = list(rows.items())
    if not isinstance(rows, list) or not all(
        isinstance(row, list | tuple) and len(row) == 2 and isinstance(row[0], str) for row in rows
    ):
        raise UserError(f"{file}: 'labels' is not a list of [file, class number]; correct it")
    below = most_classes(len(rows))
    for name, value in rows:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
            raise UserError(
                f"{file}: the label of {name} is {json.dumps(value)[:40]}, expected a class number from 0 to "
                f"{below - 1}"
            )
    return Table(file, {name.replace("\\", "/"): value for name, value in rows}, file.name, numbered=True)


def _unreadable(file: Path, error: Exception) -> UserError:
    what = "correct it" if isinstance(error, json.JSONDecodeError) else "save it as UTF-8"
    return UserError(f"{file} is not a readable table: {error}; {what}")


ROWS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "metadata.csv": _csv_rows,
    "metadata.jsonl": _jsonl_rows,
    TABLE: _parquet_rows,
}
READERS: dict[str, Callable[[Path, DataSpec], Table | None]] = {
    "metadata.csv": _csv,
    "metadata.jsonl": _jsonl,
    TABLE: _parquet,
    EDM: _edm,
}
