"""MDS shards of mosaicml-streaming: `index.json` and `shard.NNNNN.mds`, read in place.

A shard holds uint32 n, n + 1 uint32 offsets, a JSON header, and n samples. A sample holds the uint32 sizes of
its columns of variable size, then all columns. Source: mosaicml/streaming base/format/mds/writer.py,
encodings.py.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.config.data_spec import DataSpec
from harness.data.disk.labels import NONE, Labels, label_column, unlabelled, usable_labels
from harness.data.disk.packed import (
    PICKLED,
    Packed,
    PackedImages,
    check_names,
    decompressed_by,
    read_span,
    refuse_pickled,
    train_split,
)
from harness.data.disk.pixels import LARGEST
from harness.data.disk.survey import Encoded, survey_files
from harness.data.disk.webdataset import as_column, whole
from harness.errors import UserError, first_line, unknown
from harness.files.files import read_text
from harness.files.parse import parse_json
from metrics.files.listing import Skipped

INDEX, VERSION = "index.json", 2
SCALARS = {
    "int": "<i8", "int8": "<i1", "int16": "<i2", "int32": "<i4", "int64": "<i8", "uint8": "<u1",
    "uint16": "<u2", "uint32": "<u4", "uint64": "<u8", "float16": "<f2", "float32": "<f4", "float64": "<f8",
}  # fmt: skip
"""Encodings of numbers, and their types."""
TEXTS = ("str", "str_int", "str_float")
PICTURES = ("jpeg", "png", "pil", "bytes")
"""Encodings of images; columns of bytes are images only under a usual name, or if the user names them."""
USUAL_IMAGES = ("image", "img", "jpg", "jpeg", "png", "picture", "x")
BANDS = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}
"""Modes of raw pictures that are read, and their bytes for each pixel."""
LABEL_BYTES = 1024


class MdsImages(PackedImages):
    """Images of MDS shards (mosaicml-streaming), labelled by a column; pickled columns are refused.

    Of the folders of several splits, only `train` is read.
    """

    expected = "a folder with index.json and .mds shards, with a column of images (jpeg, png, pil)"

    @staticmethod
    def open(spec: DataSpec, path: Path) -> Packed:
        root, skipped = mds_folder(path)
        shards = read_index(root)
        image = _image_column(spec, root, shards)
        label = _label_column(spec, root, shards, image)
        labels, source = _labels(spec, root, shards, label)
        return Packed(
            [shard.file for shard in shards], [shard.samples for shard in shards], labels, source,
            lambda file, row: shards[file].picture(row, image), lambda file, row: shards[file].where(row),
            f"mds {image} {shards[0].layout}", skipped,
        )  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """One shard: its file and its columns."""

    file: Path
    samples: int
    columns: dict[str, str]
    """Name -> encoding, in the order of the file."""
    sizes: dict[str, int | None] = field(repr=False)
    """Name -> fixed size in bytes, None for a variable size."""

    @property
    def layout(self) -> str:
        """The columns as text, on which the position of a value depends."""
        return json.dumps([self.columns, self.sizes])

    def where(self, row: int) -> str:
        return f"{self.file} row {row}"

    @cached_property
    def offsets(self) -> np.ndarray:
        """Positions of all samples and of the end, int64 (samples + 1,). Raises `UserError` if damaged."""
        head = read_span(self.file, 0, 4 * (self.samples + 2), str(self.file))
        count, *offsets = np.frombuffer(head, "<u4").astype(np.int64).tolist()
        size = self.file.stat().st_size
        if (
            count != self.samples
            or offsets[-1] != size
            or offsets[0] < len(head)
            or sorted(offsets) != offsets
        ):
            raise UserError(
                f"{self.file} is damaged: its table of {count} samples does not fit {self.samples} samples "
                f"in {size:,} bytes; replace it"
            )
        return np.array(offsets, dtype=np.int64)

    def cell(self, row: int, column: str, limit: int | None = None) -> bytes:
        """Return the bytes of a column. Raises `UserError` if the sample is damaged."""
        where = f"{self.where(row)}: column '{column}'"
        begin, end = (int(offset) for offset in self.offsets[row : row + 2])
        variable = [name for name, size in self.sizes.items() if not size]
        if end - begin < 4 * len(variable):
            raise UserError(f"{self.where(row)} is damaged: it has {end - begin} bytes; replace the shard")
        head = read_span(self.file, begin, 4 * len(variable), where)
        stated = dict(zip(variable, np.frombuffer(head, "<u4").tolist(), strict=True))
        sizes = {name: size or stated[name] for name, size in self.sizes.items()}
        if len(head) + sum(sizes.values()) != end - begin:
            raise UserError(
                f"{self.where(row)} is damaged: its columns have {sum(sizes.values()):,} bytes, but the "
                f"sample has {end - begin - len(head):,}; replace the shard"
            )
        before = sum(size for name, size in list(sizes.items())[: list(sizes).index(column)])
        if limit is not None and sizes[column] > limit:
            raise UserError(f"{where} has {sizes[column]:,} bytes, expected at most {limit:,}")
        return read_span(self.file, begin + len(head) + before, sizes[column], where)

    def picture(self, row: int, column: str) -> bytes:
        """Return an encoded image; a raw one is encoded as PNG, which loses nothing."""
        content = self.cell(row, column)
        if _kind(self.columns[column]) != "pil":
            return content
        return _png(content, f"{self.where(row)}: column '{column}'")

    def label(self, row: int, column: str) -> int | float | str:
        """Return the value of a column of numbers or texts."""
        kind, where = _kind(self.columns[column]), f"{self.where(row)}: column '{column}'"
        content = self.cell(row, column, LABEL_BYTES)
        if kind in SCALARS:
            kind = np.dtype(SCALARS[kind])
            if len(content) != kind.itemsize:
                raise UserError(
                    f"{where} has {len(content)} bytes, expected {kind.itemsize}; replace the shard"
                )
            return np.frombuffer(content, kind)[0].item()
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{where} is not UTF-8; replace the shard") from error
        return int(text) if kind == "str_int" and re.fullmatch(r"-?\d{1,18}", text) else text


def read_index(root: Path) -> list[Shard]:
    """Return the shards of a folder. Raises `UserError` for an index that is damaged or not supported."""
    file = root / INDEX
    if not file.is_file():
        raise UserError(f"data.root = {root} has no {INDEX}; expected {MdsImages.expected}")
    try:
        index = parse_json(read_text(file, "JSON"))
        shards = [_shard(root, row) for row in index["shards"]]
        if index["version"] != VERSION:
            raise ValueError(f"version {index['version']}, expected {VERSION}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = first_line(error)
        raise UserError(f"{file} is not an index of MDS shards: {reason}; replace it") from error
    if not shards:
        raise UserError(f"{file} lists no shards; expected {MdsImages.expected}")
    check_names([shard.file.name for shard in shards], file)
    for shard in shards:
        if shard.columns != shards[0].columns:
            raise UserError(f"{shard.file} has other columns than {shards[0].file}; move it out of the index")
    return shards


# Any: a row of JSON.
def _shard(root: Path, row: dict[str, Any]) -> Shard:
    if row["format"] != "mds":
        raise ValueError(f"shards of format {str(row['format'])[:20]!r}, expected 'mds'")
    name, samples = row["raw_data"]["basename"], row["samples"]
    names, kinds, sizes = row["column_names"], row["column_encodings"], row["column_sizes"]
    if not isinstance(name, str) or not isinstance(samples, int) or not 0 <= samples < 2**32:
        raise ValueError("a shard without name or number of samples")
    if not len(names) == len(kinds) == len(sizes) == len(set(names)):
        raise ValueError(f"columns of {name} without encoding or size")
    if not all(isinstance(text, str) for text in (*names, *kinds)):
        raise ValueError(f"columns of {name} that are no texts")
    if not all(size is None or (isinstance(size, int) and size >= 0) for size in sizes):
        raise ValueError(f"columns of {name} with a size that is no number")
    check_names([name], root / INDEX)
    file = root / name
    if not file.is_file():
        raise UserError(f"{file} is missing; {_way_out(root, row)}")
    return Shard(file, samples, dict(zip(names, kinds, strict=True)), dict(zip(names, sizes, strict=True)))


# Any: a row of JSON.
def _way_out(root: Path, row: dict[str, Any]) -> str:
    """Return what to do about a missing shard, which may be there in compressed form."""
    packed = row.get("zip_data")
    name = packed.get("basename") if isinstance(packed, dict) else None
    if not isinstance(name, str):
        return "replace it"
    command = decompressed_by(str(root / name)) or "decompress it"
    return f"it is compressed ({str(row.get('compression'))[:20]}), so run {command}"


def mds_folder(path: Path) -> tuple[Path, tuple[Skipped, ...]]:
    """Return the folder of the index: the root, or that of the training split."""
    if not path.is_dir():
        raise UserError(f"data.root = {path} is a file, expected {MdsImages.expected}")
    if (path / INDEX).is_file():
        return path, ()
    splits = sorted(inner.parent.name for inner in path.glob(f"*/{INDEX}"))
    if not splits:
        raise UserError(f"data.root = {path} has no {INDEX}; expected {MdsImages.expected}")
    chosen = train_split(path, splits, f"folders with {INDEX}")
    left = [split for split in splits if split != chosen]
    reason = f"outside of the split {chosen}"
    return path / chosen, (Skipped(reason, len(left), f"{left[0]}/{INDEX}"),) if left else ()


def _image_column(spec: DataSpec, root: Path, shards: Sequence[Shard]) -> str:
    columns = shards[0].columns
    if key := spec.image_key:
        if key not in columns:
            raise unknown(f"data.image_key in {root / INDEX}", key, columns)
        _refuse(root, {key: columns[key]})
        if _kind(columns[key]) not in PICTURES:
            raise UserError(
                f"{root / INDEX}: column '{key}' is {columns[key]}, expected {', '.join(PICTURES)}; choose "
                "another with data.image_key"
            )
        return key
    _refuse(root, columns)
    images = [name for name, kind in columns.items() if _kind(kind) in PICTURES[:-1]]
    images = images or [n for n, kind in columns.items() if kind == "bytes" and n.lower() in USUAL_IMAGES]
    if len(images) != 1:
        described = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
        raise UserError(
            f"{root / INDEX} has columns {described}; choose one with data.image_key; expected "
            f"{MdsImages.expected}"
        )
    return images[0]


def _refuse(root: Path, columns: dict[str, str], field: str = "data.image_key") -> None:
    """Raise `UserError` if some of these columns are pickled."""
    pickled = [f"{name} ({kind})" for name, kind in columns.items() if _kind(kind) in PICKLED]
    refuse_pickled(pickled, str(root / INDEX), field)


def _label_column(spec: DataSpec, root: Path, shards: Sequence[Shard], image: str) -> str:
    columns = {name: kind for name, kind in shards[0].columns.items() if name != image}
    described = (
        f"{root / INDEX} has columns {', '.join(f'{name} ({kind})' for name, kind in columns.items())}"
    )
    label = label_column(list(columns), described, spec.label_key)
    if not label:
        return ""
    if label not in columns:
        raise unknown(f"data.label_key in {root / INDEX}", label, columns)
    _refuse(root, {label: columns[label]}, f"data.label_key={NONE}")
    if _kind(columns[label]) not in (*SCALARS, *TEXTS):
        raise UserError(
            f"{root / INDEX}: column '{label}' is {columns[label]}, expected numbers or texts; choose "
            "another with data.label_key"
        )
    return label


def _labels(spec: DataSpec, root: Path, shards: Sequence[Shard], label: str) -> tuple[Labels, str]:
    n = sum(shard.samples for shard in shards)
    if not label:
        return unlabelled(
            n
        ), f"none: data.label_key = {NONE}" if spec.label_key else "none: no column of labels"
    shard_of = {str(shard.file): shard for shard in shards}

    def inspect(item: Encoded) -> tuple[Any, ...]:
        shard = shard_of[item.where]
        return "", [shard.label(row, label) for row in range(shard.samples)]

    files = [shard.file for shard in shards]
    rows = survey_files(root, files, whole, f"mds {label} {shards[0].layout}", inspect)
    values = as_column([value for _, part in rows for value in part])
    if len(values) != n:
        raise UserError(f"{root / INDEX} states {n} samples, but {len(values)} have labels; replace it")
    found = usable_labels(values, n, f"{root}: column '{label}'", chosen=bool(spec.label_key))
    return found, f"column '{label}'"


def _kind(encoding: str) -> str:
    """Return the name of an encoding without its options, for example of `jpeg:90`."""
    return encoding.partition(":")[0]


def _png(content: bytes, where: str) -> bytes:
    """Return the PNG of a raw picture: uint32 width, height and length of the mode, the mode, the bytes."""
    head, mode = np.frombuffer(content[:12].ljust(12, b"\0"), "<u4").tolist(), ""
    if 0 < head[2] <= 8:
        mode = content[12 : 12 + head[2]].decode(errors="replace")
    width, height, start = head[0], head[1], 12 + head[2]
    row = (width + 7) // 8 if mode == "1" else width * BANDS.get(mode, 0)
    if not width * height or mode not in BANDS or len(content) - start != row * height:
        raise UserError(f"{where} is no raw picture: {width}x{height} '{mode[:8]}'; replace the shard")
    if width * height > LARGEST:
        raise UserError(f"{where} has more than {LARGEST:,} pixels; scale it down or remove it")
    image, buffer = Image.frombytes(mode, (width, height), content[start:]), io.BytesIO()
    # PNG has no such colours.
    (image.convert("RGB") if mode == "CMYK" else image).save(buffer, "PNG")
    return buffer.getvalue()
