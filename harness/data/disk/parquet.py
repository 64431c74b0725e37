"""Parquet files in the Hugging Face layout: a column of encoded images (`struct<bytes, path>`) and one of
integer labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# Any: JSON.
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.config.data_spec import DataSpec
from harness.data.dataset import Sample
from harness.data.disk.captions import Captions, caption_column, column_captions
from harness.data.disk.class_label import class_names
from harness.data.disk.labels import NONE, Labels, label_column, most_classes, unlabelled, usable_labels
from harness.data.disk.pixels import decode, fit
from harness.data.disk.survey import Encoded, common_shape, data_path, fingerprint, survey_files
from harness.data.stored import stored_images
from harness.errors import UserError, first_line, unknown
from metrics.files.listing import Skipped
from metrics.files.parquet_files import bounded_table, parquet_files, schema_of
from metrics.value import MetricError

EXPECTED = (
    "a .parquet file, or a folder of them, with a column of images, videos or recordings "
    "(struct<bytes, path>) and one of labels"
)
DAMAGED = (pa.ArrowException, OSError, ValueError, KeyError)
"""Exceptions of pyarrow for damaged Arrow files; names that are not UTF-8 are a ValueError."""


class ParquetImages:
    """Rows of one file, or of all files of a folder sorted by name; of several splits, only `train` is used.

    The encoded images of all rows are kept in memory. A sample is decoded each time it is read.
    """

    modality = "image"
    reads = ("root", "resolution", "channels", "image_key", "label_key", "caption_key")

    def __init__(self, spec: DataSpec) -> None:
        path, rows = self.rows(spec)
        self._rows = rows
        self.classes, self.class_names, self.files = rows.classes, list(rows.class_names), len(rows.files)
        self.label_source, self.label_problem, self.skipped = rows.label_source, rows.problem, rows.skipped
        surveys = survey_rows(path, rows, rows.key)
        self.stored = stored_images((s.width, s.height) for s in surveys)
        self.shape = common_shape(spec, surveys, rows.where)
        self._keys = [bytes.fromhex(s.sha256) for s in surveys]
        self.fingerprint = fingerprint((s.sha256 for s in surveys), rows.labels.tolist())
        if spec.caption_key:
            captions = read_captions(rows.files, spec.caption_key)
            self.captions, self.caption_source = captions.of, captions.source
            self.fingerprint = captions.fingerprint(self.fingerprint)

    @staticmethod
    def rows(spec: DataSpec) -> tuple[Path, Rows]:
        """Return the root of the files and all their rows."""
        path = data_path(spec, EXPECTED)
        return path, read_rows(spec, path)

    def __len__(self) -> int:
        return len(self._keys)

    def sample(self, index: int) -> Sample:
        image = decode(self._rows.content[index].as_py(), self._rows.where(index))
        return Sample(fit(image, self.shape), self.label(index))

    def label(self, index: int) -> int:
        return int(self._rows.labels[index])

    def key(self, index: int) -> bytes:
        return self._keys[index]

    def sample_name(self, index: int) -> str:
        return self._rows.where(index)


@dataclass(frozen=True)
class Rows:
    """The encoded content and the labels of all rows of some files."""

    files: list[Path]
    tables: dict[Path, pa.Table]
    key: str
    """Name of the content column."""
    labels: np.ndarray
    classes: int
    class_names: tuple[str, ...]
    """Names of a ClassLabel, or the texts of a column; empty if classes are only numbered."""
    problem: str
    """Why existing labels cannot be used; empty if they can."""
    label_source: str
    skipped: tuple[Skipped, ...]

    @cached_property
    def content(self) -> pa.ChunkedArray:
        return pa.chunked_array([c for table in self.tables.values() for c in table["image"].chunks])

    @cached_property
    def ends(self) -> np.ndarray:
        return np.cumsum([len(table) for table in self.tables.values()])

    def where(self, index: int) -> str:
        """Return file and row (from 0) of a sample, as text for a message."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        return f"{self.files[number]} row {index - (self.ends[number - 1] if number else 0)}"

    def inside(self, file: Path) -> list[Encoded]:
        """Return the rows of one file."""
        return [
            Encoded(value.as_py, f"{file} row {row}") for row, value in enumerate(self.tables[file]["image"])
        ]


def survey_rows(
    root: Path,
    rows: Rows,
    variant: str,
    inspect: Callable[[Encoded], tuple[Any, ...]] | None = None,
    # Any: the results of `inspect`.
) -> list[Any]:
    """Return the survey of every row; see `survey_files`."""
    return survey_files(root, rows.files, rows.inside, variant, inspect)


def read_rows(spec: DataSpec, path: Path) -> Rows:
    """Return all rows of a parquet file or of a folder of them.

    Raises `UserError` naming the file, column or row at fault.
    """
    files, skipped = _train_files(path) if path.is_dir() else ([path], ())
    return rows_of_files(spec, path, files, skipped)


def rows_of_files(spec: DataSpec, path: Path, files: list[Path], skipped: tuple[Skipped, ...]) -> Rows:
    """Return all rows of some parquet or Arrow files below a path."""
    key, label = _columns(spec, files[0])
    tables = {file: _read(file, key, label) for file in files}
    if not any(map(len, tables.values())):
        raise UserError(f"data.root = {path} has no rows; expected {EXPECTED}")
    labels = _labels(tables, files[0], label, chosen=bool(spec.label_key))
    return Rows(files, tables, key, *labels, _label_source(files[0], key, label), skipped)


def read_captions(files: list[Path], key: str) -> Captions:
    """Return the captions of all rows. Raises `UserError` naming the file, column or row at fault."""
    name = caption_column(_schema(files[0]).names, key, str(files[0]))
    columns = []
    for file in files:
        if name not in _schema(file).names:
            raise UserError(
                f"{file} has no column '{name}', which the other files have; add it or remove the file"
            )
        columns.append((_columns_of(file, [name])[name], f"{file}: column '{name}'"))
    return column_captions(columns, f"column '{name}'")


def _train_files(folder: Path) -> tuple[list[Path], tuple[Skipped, ...]]:
    """Return all files of a folder, or only those of `train` if their names contain several splits."""
    try:
        files, skipped = parquet_files(folder)
    except MetricError as error:
        raise UserError(
            f"data.root = {error}".replace("give one file", "set data.root to one file")
        ) from error
    if not files:
        raise UserError(f"data.root = {folder} has no .parquet files; expected {EXPECTED}")
    return files, skipped


def _label_source(file: Path, image: str, label: str) -> str:
    """Return where labels are from, and which integer columns are not labels."""
    if label:
        return f"column '{label}'"
    columns = (field for field in _schema(file) if field.name != image)
    others = [field.name for field in columns if pa.types.is_integer(field.type)]
    return f"none: {', '.join(others)} not taken as labels" if others else "none: no column of labels"


def _columns(spec: DataSpec, file: Path) -> tuple[str, str]:
    """Return the names of the image column and of the label column, "" for data without labels."""
    schema = _schema(file)
    if "" in schema.names:
        raise UserError(f"{_described(file, schema)}: one has no name; name it")
    images = [field.name for field in schema if _holds_images(field.type)]
    image = spec.image_key or _only(images, "data.image_key", file, schema)
    for field, key in (("image_key", spec.image_key), ("label_key", spec.label_key)):
        if key not in ("", NONE, *schema.names) or (key == NONE and field == "image_key"):
            raise unknown(f"data.{field} in {file}", key, schema.names)
    return image, _label(spec, file, schema, image)


def _label(spec: DataSpec, file: Path, schema: pa.Schema, image: str) -> str:
    declared = [name for name in class_names(schema) if name in schema.names]
    columns = [name for name in schema.names if name != image]
    return label_column(columns, _described(file, schema), spec.label_key, declared)


def _described(file: Path, schema: pa.Schema) -> str:
    return f"{file} has columns {', '.join(f'{column.name} ({column.type})' for column in schema)}"


def _only(names: list[str], field: str, file: Path, schema: pa.Schema) -> str:
    if len(names) == 1:
        return names[0]
    raise UserError(f"{_described(file, schema)}; choose one with {field}; expected {EXPECTED}")


def _read(file: Path, image: str, label: str) -> pa.Table:
    """Read a file's rows as columns `image` (encoded bytes) and, if there are labels, `label`."""
    schema = _schema(file)
    for name in filter(None, (image, label)):
        if name not in schema.names:
            raise UserError(
                f"{file} has no column '{name}', which the other files have; add it or remove the file"
            )
    kind = schema.field(image).type
    if not (_holds_images(kind) or _is_binary(kind)):
        raise UserError(f"{file}: column '{image}' is {kind}, expected struct<bytes, path> or binary")
    table = _columns_of(file, list(filter(None, (image, label))))
    column = table[image]
    if pa.types.is_struct(column.type):
        # pyarrow generates its functions when it is imported.
        column = pc.struct_field(column, "bytes")  # pyright: ignore[reportAttributeAccessIssue]
    for row in np.flatnonzero(column.is_null())[:1]:
        raise UserError(f"{file} row {row}: column '{image}' has no bytes; embed the images in the file")
    # Files may store different binary types.
    column = column.cast(pa.large_binary())
    return pa.table({"image": column} | ({"label": table[label]} if label else {}))


def _labels(tables: dict[Path, pa.Table], first: Path, label: str, *, chosen: bool) -> Labels:
    """Return the labels of all rows, with the classes of the schema's ClassLabel if it has one."""
    rows = sum(map(len, tables.values()))
    if not label:
        return unlabelled(rows)
    names = class_names(_schema(first)).get(label, [])
    parts = []
    for file, table in tables.items():
        column, where = table["label"], f"{file}: column '{label}'"
        kind = column.type
        if not (
            pa.types.is_integer(kind) or _is_text(kind) or pa.types.is_floating(kind) or kind == pa.bool_()
        ):
            raise UserError(
                f"{where} is {kind}, expected integers or texts; choose another with data.label_key"
            )
        for row in np.flatnonzero(column.is_null())[:1]:
            problem = f"{where} is empty at row {row}"
            if chosen:
                raise UserError(f"{problem}; fill it in or remove the row")
            return unlabelled(rows, problem)
        parts.append((column.to_numpy(), where))
    return _joined(parts, names, chosen)


def _joined(parts: list[tuple[np.ndarray, str]], names: list[str], chosen: bool) -> Labels:
    """Return the labels of several files, which share their classes."""
    if any(values.dtype.kind == "O" for values, _ in parts):
        values = np.concatenate([values for values, _ in parts])
        return usable_labels(values, len(values), parts[0][1], chosen=chosen)
    below = 0 if names else most_classes(sum(len(values) for values, _ in parts))
    found = [
        usable_labels(values, len(values), where, names=names, below=below, chosen=chosen)
        for values, where in parts
    ]
    if problem := next((part.problem for part in found if part.problem), ""):
        return unlabelled(sum(len(part.labels) for part in found), problem)
    labels = np.concatenate([part.labels for part in found])
    return Labels(labels, max(part.classes for part in found), tuple(names))


def _schema(file: Path) -> pa.Schema:
    try:
        return arrow_stream(file).schema if _is_arrow(file) else schema_of(file)
    except MetricError as error:
        raise UserError(f"{error}; expected {EXPECTED}") from error
    except DAMAGED as error:
        reason = first_line(error)
        raise UserError(f"{file} is not a readable arrow file: {reason}; expected {EXPECTED}") from error


def arrow_stream(file: Path) -> pa.RecordBatchReader:
    """Open an Arrow file, memory-mapped: a stream, as the datasets library writes it."""
    return pa.ipc.open_stream(pa.memory_map(str(file)))


def _columns_of(file: Path, columns: list[str]) -> pa.Table:
    """Return some columns of a file. Raises `UserError` for a damaged one."""
    try:
        return _table(file, columns)
    except MetricError as error:
        raise UserError(f"{error}; replace it") from error
    except DAMAGED as error:
        reason = first_line(error)
        raise UserError(f"{file} is a damaged arrow file: {reason}; replace it") from error


def _table(file: Path, columns: list[str]) -> pa.Table:
    """Return some columns of a file; those of an Arrow file stay on the disk until they are read."""
    if not _is_arrow(file):
        return bounded_table(file, columns)
    with arrow_stream(file) as reader:
        table = reader.read_all().select(columns)
    # Offsets of a damaged file would lead outside of it.
    table.validate(full=True)
    return table


def _is_arrow(file: Path) -> bool:
    return file.suffix == ".arrow"


def _holds_images(kind: pa.DataType) -> bool:
    return (
        pa.types.is_struct(kind)
        and kind.get_field_index("bytes") >= 0
        and _is_binary(kind.field("bytes").type)
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
