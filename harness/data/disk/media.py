"""What videos and recordings on disk share: their files in the Hugging Face layouts, and the survey of them.

Every file is decoded once, before anything starts, and refused by its name where it breaks a rule; nothing is
left out in silence. A file gives one sample for each whole clip in it, end to end from its beginning.
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
from harness.data.disk.folder import Kind, found, listed
from harness.data.disk.parquet import read_rows
from harness.data.disk.survey import Encoded, data_path, fingerprint, survey
from harness.errors import UserError
from metrics.files import media

REMEMBERED = 2**29
"""Bytes of decoded samples that a data set keeps."""


@dataclass(frozen=True)
class MediaIndex:
    """The files or rows of a data set, in order, with what the survey saw of each."""

    items: Sequence[Encoded]
    labels: Sequence[int]
    classes: int
    class_names: list[str]
    seen: list[list[Any]]
    """Of each: the sha256 of its encoded bytes, and what the kind's own look found."""

    def key(self, item: int) -> bytes:
        return bytes.fromhex(self.seen[item][0])

    def fingerprint(self) -> str:
        return fingerprint((seen[0] for seen in self.seen), self.labels)


@dataclass(frozen=True)
class Clips:
    """The item and the clip of each sample: item i has counts[i] clips."""

    counts: Sequence[int]

    @cached_property
    def ends(self) -> list[int]:
        """The number of samples up to the last clip of each item."""
        return list(accumulate(self.counts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        item = bisect_right(self.ends, index)
        return item, index - (self.ends[item] - self.counts[item])


class Memory:
    """Samples once decoded, as many as fit: from the second epoch on they cost nothing."""

    def __init__(self) -> None:
        self._kept: dict[int, np.ndarray] = {}
        self._free = REMEMBERED

    def get(self, index: int, decode: Callable[[int], np.ndarray]) -> np.ndarray:
        if (found := self._kept.get(index)) is not None:
            return found
        x = decode(index)
        if x.nbytes <= self._free:
            self._kept[index], self._free = x, self._free - x.nbytes
        return x


def media_index(spec: DataSpec, kind: Kind, look: Callable[[media.Encoded], tuple[float, ...]]) -> MediaIndex:
    """The files below `data.root`, one subfolder a class or as its `metadata.csv` says, or the rows of
    parquet.

    `look` decodes one and tells what it saw. Raises `UserError` for a root without files of the kind, and for
    whatever `look` refuses.
    """
    root = data_path(spec, f"{kind.expected}, or parquet with a column of them")

    def seen(item: Encoded) -> tuple:
        content = item.read()
        if not content:
            raise UserError(f"{item.where} is empty: 0 bytes; replace or remove it")
        return hashlib.sha256(content).hexdigest(), *look(media.Encoded(item.where, content))

    if _holds_parquet(root):
        rows = read_rows(spec, root)
        looks = survey(root, rows.files, rows.inside, f"{kind.plural} {rows.key}", seen)
        items = [item for file in rows.files for item in rows.inside(file)]
        return MediaIndex(items, rows.labels.tolist(), rows.classes, [], looks)
    if not root.is_dir():
        raise UserError(
            f"data.root = {root} is a file, expected {kind.expected}, or parquet with a column of them"
        )
    described = root / "metadata.csv"
    names, files, labels = from_table(described, kind, spec) if described.exists() else listed(root, kind)
    looks = survey(root, [root / file for file in files], lambda file: [_file(file)], kind.plural, seen)
    return MediaIndex([_file(root / file) for file in files], labels, max(1, len(names)), names, looks)


def from_table(table: Path, kind: Kind, spec: DataSpec) -> tuple[list[str], list[str], list[int]]:
    """Class names, files and labels as a `metadata.csv` beside or above the files has them: the columns
    `file_name` and `label` (or `data.label_key`). Raises `UserError` for files that are listed and absent, or
    there and not listed."""
    label = spec.label_key or "label"
    try:
        with table.open(newline="", encoding="utf-8-sig") as content:
            rows = list(csv.DictReader(content))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not a readable table: {error}") from error
    for column in ("file_name", label):
        if not rows or not all(row.get(column) for row in rows):
            raise UserError(
                f"{table} has no value of '{column}' in some row; expected columns file_name and {label}"
            )
    files = [row["file_name"] for row in rows]
    there = set(found(table.parent, kind))
    for name in sorted(name for name, times in Counter(files).items() if times > 1 or name not in there)[:1]:
        raise UserError(
            f"{table} lists {name}, which is not there, is no file of {kind.plural}, or is listed twice"
        )
    for name in sorted(there - set(files))[:1]:
        raise UserError(f"{table.parent / name} is not listed in {table.name}; list it or move it away")
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
