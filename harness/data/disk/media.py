"""Videos and recordings in the Hugging Face layouts: their files, labels and clips.

Every file is decoded once before a run starts. A file that cannot be used raises an error that names it;
none is left out silently. A file yields one sample per complete clip, end to end from its beginning.
"""

from __future__ import annotations

import csv
import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.spec import DataSpec
from harness.data.disk.folder import Kind, find_files, list_files
from harness.data.disk.parquet import read_rows
from harness.data.disk.survey import Encoded, data_path, fingerprint, survey
from harness.errors import UserError
from metrics.files import media

REMEMBERED = 2**29
"""Bytes of decoded samples that a data set keeps in memory."""


@dataclass(frozen=True)
class MediaIndex:
    """The files or rows of a data set, in order, with the survey of each."""

    items: Sequence[Encoded]
    labels: Sequence[int]
    classes: int
    class_names: list[str]
    # Any: hashes, counts and seconds, by kind.
    surveys: list[list[Any]]
    """For each item the sha256 of its encoded bytes, then the result of the `inspect` of its kind."""

    def key(self, item: int) -> bytes:
        return bytes.fromhex(self.surveys[item][0])

    def fingerprint(self) -> str:
        return fingerprint((survey[0] for survey in self.surveys), self.labels)


@dataclass(frozen=True)
class Clips:
    """A map from samples to clips of items: item i has counts[i] clips."""

    counts: Sequence[int]

    @cached_property
    def ends(self) -> list[int]:
        """The cumulative number of clips, up to and including each item."""
        return list(accumulate(self.counts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        item = bisect_right(self.ends, index)
        return item, index - (self.ends[item] - self.counts[item])


class Memory:
    """A cache of decoded samples, up to REMEMBERED bytes."""

    def __init__(self) -> None:
        self._kept: dict[int, np.ndarray] = {}
        self._free = REMEMBERED

    def get(self, index: int, decode: Callable[[int], np.ndarray]) -> np.ndarray:
        """Return a cached sample, or decode it and cache it if it fits."""
        if (cached := self._kept.get(index)) is not None:
            return cached
        x = decode(index)
        if x.nbytes <= self._free:
            self._kept[index], self._free = x, self._free - x.nbytes
        return x


def media_index(
    spec: DataSpec, kind: Kind, inspect: Callable[[media.Encoded], tuple[float, ...]]
) -> MediaIndex:
    """Return the files below `data.root`, or the rows of parquet files.

    Labels come from a `metadata.csv` if there is one, else from the subfolders. `inspect` decodes an item and
    returns its survey. Raises `UserError` for a root without files of the kind, and for every item that
    `inspect` rejects.
    """
    root = data_path(spec, f"{kind.expected}, or parquet with a column of them")

    def inspected(item: Encoded) -> tuple[Any, ...]:
        content = item.read()
        if not content:
            raise UserError(f"{item.where} is empty: 0 bytes; replace or remove it")
        return hashlib.sha256(content).hexdigest(), *inspect(media.Encoded(item.where, content))

    if _holds_parquet(root):
        rows = read_rows(spec, root)
        surveys = survey(root, rows.files, rows.inside, f"{kind.plural} {rows.key}", inspected)
        items = [item for file in rows.files for item in rows.inside(file)]
        return MediaIndex(items, rows.labels.tolist(), rows.classes, [], surveys)
    if not root.is_dir():
        raise UserError(
            f"data.root = {root} is a file, expected {kind.expected}, or parquet with a column of them"
        )
    table = root / "metadata.csv"
    names, files, labels = read_table(table, kind, spec) if table.exists() else list_files(root, kind)
    surveys = survey(
        root, [root / file for file in files], lambda file: [_file(file)], kind.plural, inspected
    )
    return MediaIndex([_file(root / file) for file in files], labels, max(1, len(names)), names, surveys)


def read_table(table: Path, kind: Kind, spec: DataSpec) -> tuple[list[str], list[str], list[int]]:
    """Return class names, files and labels from a `metadata.csv` with columns `file_name` and `label`, or
    `data.label_key`.

    Raises `UserError` for files that are listed but missing, and for existing files that are not listed.
    """
    label = spec.label_key or "label"
    try:
        with table.open(newline="", encoding="utf-8-sig") as content:
            rows = list(csv.DictReader(content))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not a readable table: {error}") from error
    for column in ("file_name", label):
        if not rows or not all(row.get(column) for row in rows):
            raise UserError(
                f"{table} lacks a value of '{column}' in some row; expected columns file_name and {label}"
            )
    files = [row["file_name"] for row in rows]
    existing = set(find_files(table.parent, kind))
    for name in sorted(name for name, times in Counter(files).items() if times > 1 or name not in existing)[
        :1
    ]:
        raise UserError(
            f"{table} lists {name}, which does not exist, is not one of the {kind.plural}, or is listed "
            "twice; "
            "correct or remove the row"
        )
    for name in sorted(existing - set(files))[:1]:
        raise UserError(
            f"{table.parent / name} is not listed in {table.name}; add a row, or move it out of the folder"
        )
    classes = {row[label] for row in rows}
    names = sorted(classes, key=int if all(name.isdecimal() for name in classes) else str)
    number = {name: index for index, name in enumerate(names)}
    return names, files, [number[row[label]] for row in rows]


def _holds_parquet(root: Path) -> bool:
    return root.suffix == ".parquet" or (root.is_dir() and any(root.rglob("*.parquet")))


def _file(path: Path) -> Encoded:
    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error

    return Encoded(read, str(path))
