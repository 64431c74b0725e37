"""Parquet files in the Hugging Face layout: a column of encoded images (`struct<bytes, path>`) and one of
integer labels."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.config.spec import DataSpec
from harness.data.dataset import Sample
from harness.data.disk.arrays import checked_labels, most_classes
from harness.data.disk.pixels import decode, fit
from harness.data.disk.survey import Encoded, common_shape, data_path, fingerprint, survey
from harness.errors import UserError, unknown

EXPECTED = (
    "a .parquet file, or a folder of them, with a column of images, videos or recordings "
    "(struct<bytes, path>) and one of integer labels"
)
SPLIT = re.compile(r"(?:^|/)(train|test|validation|valid|val|dev)(?![a-z])")
"""The split in the name of a file or folder, for example `data/train-00000-of-00002.parquet` or
`train/0000.parquet`."""


class ParquetImages:
    """Rows of one file, or of all files of a folder sorted by name; of several splits, only `train` is used.

    The encoded images of all rows are kept in memory. A sample is decoded each time it is read.
    """

    modality = "image"
    reads = ("root", "resolution", "channels", "image_key", "label_key")

    def __init__(self, spec: DataSpec) -> None:
        path = data_path(spec, EXPECTED)
        self._rows = rows = read_rows(spec, path)
        self.classes = rows.classes
        surveys = survey(path, rows.files, rows.inside, rows.key)
        self.shape = common_shape(spec, surveys, rows.where)
        self._keys = [bytes.fromhex(s.sha256) for s in surveys]
        self.fingerprint = fingerprint((s.sha256 for s in surveys), rows.labels.tolist())

    def __len__(self) -> int:
        return len(self._keys)

    def sample(self, index: int) -> Sample:
        image = decode(self._rows.content[index].as_py(), self._rows.where(index))
        return Sample(fit(image, self.shape), self.label(index))

    def label(self, index: int) -> int:
        return int(self._rows.labels[index])

    def key(self, index: int) -> bytes:
        return self._keys[index]


@dataclass(frozen=True)
class Rows:
    """The encoded content and the labels of all rows of some files."""

    files: list[Path]
    tables: dict[Path, pa.Table]
    key: str
    """Name of the content column."""
    labels: np.ndarray
    classes: int

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


def read_rows(spec: DataSpec, path: Path) -> Rows:
    """Return all rows of a parquet file or of a folder of them.

    Raises `UserError` naming the file, column or row at fault.
    """
    files = _train_files(path) if path.is_dir() else [path]
    key, label = _columns(spec, files[0])
    tables = {file: _read(file, key, label) for file in files}
    if not any(map(len, tables.values())):
        raise UserError(f"data.root = {path} has no rows; expected {EXPECTED}")
    return Rows(files, tables, key, *_labels(tables, files[0], label))


def _train_files(folder: Path) -> list[Path]:
    """Return all files of a folder, or only those of `train` if their names contain several splits."""
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise UserError(f"data.root = {folder} has no .parquet files; expected {EXPECTED}")
    splits = {
        file: match[1] if (match := SPLIT.search(file.relative_to(folder).as_posix())) else ""
        for file in files
    }
    if len(set(splits.values())) == 1:
        return files
    train = [file for file in files if splits[file] == "train"]
    if not train:
        raise UserError(
            f"data.root = {folder} holds several splits and no train split: {files[0].name}, "
            f"{files[-1].name}; "
            "set data.root to one file"
        )
    return train


def _columns(spec: DataSpec, file: Path) -> tuple[str, str]:
    """Return the names of the image column and of the label column, "" for data without labels."""
    schema = _schema(file)
    images = [field.name for field in schema if _holds_images(field.type)]
    image = spec.image_key or _only(images, "data.image_key", file, schema)
    for field, key in (("image_key", spec.image_key), ("label_key", spec.label_key)):
        if key and key not in schema.names:
            raise unknown(f"data.{field} in {file}", key, schema.names)
    return image, spec.label_key or _label(file, schema)


def _label(file: Path, schema: pa.Schema) -> str:
    if "label" in schema.names:
        return "label"
    named = [name for name in _class_names(schema) if name in schema.names]
    integers = named or [field.name for field in schema if pa.types.is_integer(field.type)]
    return _only(integers, "data.label_key", file, schema) if integers else ""


def _only(names: list[str], field: str, file: Path, schema: pa.Schema) -> str:
    if len(names) == 1:
        return names[0]
    columns = ", ".join(f"{column.name} ({column.type})" for column in schema)
    raise UserError(f"{file} has columns {columns}; choose one with {field}; expected {EXPECTED}")


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
    try:
        table = pq.ParquetFile(file).read(columns=list(filter(None, (image, label))))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is a damaged parquet file: {error}; replace it") from error
    column = table[image]
    if pa.types.is_struct(column.type):
        # pyarrow generates its functions when it is imported.
        column = pc.struct_field(column, "bytes")  # pyright: ignore[reportAttributeAccessIssue]
    for row in np.flatnonzero(column.is_null())[:1]:
        raise UserError(f"{file} row {row}: column '{image}' has no bytes; embed the images in the file")
    # Files may store different binary types.
    column = column.cast(pa.large_binary())
    return pa.table({"image": column} | ({"label": table[label]} if label else {}))


def _labels(tables: dict[Path, pa.Table], first: Path, label: str) -> tuple[np.ndarray, int]:
    """Return the labels of all rows and the number of classes, that of the schema's ClassLabel if it has
    one."""
    rows = sum(map(len, tables.values()))
    if not label:
        return checked_labels(None, rows, "")
    names = _class_names(_schema(first)).get(label)
    parts = []
    for file, table in tables.items():
        column, where = table["label"], f"{file}: column '{label}'"
        if not pa.types.is_integer(column.type):
            raise UserError(
                f"{where} is {column.type}, expected integers; choose another with data.label_key"
            )
        for row in np.flatnonzero(column.is_null())[:1]:
            raise UserError(f"{where} is empty at row {row}; fill it in or remove the row")
        below = len(names) if names else most_classes(rows)
        parts.append(checked_labels(column.to_numpy(), len(table), where, below=below))
    return np.concatenate([p.labels for p in parts]), len(names or ()) or max(p.classes for p in parts)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the columns of type ClassLabel in the Hugging Face metadata, with the names of their classes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: f["names"]
            for name, f in features.items()
            if f.get("_type") == "ClassLabel" and f.get("names")
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        # The metadata is missing or has another structure.
        return {}


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a readable parquet file: {error}; expected {EXPECTED}") from error


def _holds_images(kind: pa.DataType) -> bool:
    return (
        pa.types.is_struct(kind)
        and kind.get_field_index("bytes") >= 0
        and _is_binary(kind.field("bytes").type)
    )


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
