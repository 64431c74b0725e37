"""Videos and recordings in the Hugging Face layouts: their files, labels and clips.

Every file is decoded once before a run starts. A file that cannot be used raises an error that names it;
none is left out silently. A file yields one sample per complete clip, end to end from its beginning.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.dataset import Sample
from harness.data.disk.folder import list_files
from harness.data.disk.parquet import read_rows, survey_rows
from harness.data.disk.survey import Encoded, data_path, fingerprint, survey
from harness.errors import UserError
from metrics.files import media
from metrics.files.listing import Skipped, walk
from metrics.files.media import Kind
from metrics.files.parquet_files import is_content
from metrics.value import MetricError

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
    label_source: str = ""
    problem: str = ""
    """Why existing labels cannot be used; empty if they can."""
    skipped: tuple[Skipped, ...] = ()
    files: int = 0
    """Number of files; parquet files have several items."""

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


class MediaClips(ABC):
    """Base of data sets whose samples are clips of files: labels, keys, and the facts that the index has.

    A subclass decodes a clip, and sets `shape` and `stored`.
    """

    def __init__(self, index: MediaIndex, counts: Sequence[int]) -> None:
        """Make a data set of counts[i] clips of item i."""
        self._index, self._clips, self._memory = index, Clips(counts), Memory()
        self.classes, self.class_names = index.classes, index.class_names
        self.label_source, self.label_problem, self.skipped = index.label_source, index.problem, index.skipped
        self.files, self.fingerprint = index.files, index.fingerprint()

    @abstractmethod
    def _clip(self, index: int) -> np.ndarray:
        """Return the decoded clip of a sample, uint8."""

    def __len__(self) -> int:
        return len(self._clips)

    def sample(self, index: int) -> Sample:
        return Sample(self._memory.get(index, self._clip), self.label(index))

    def label(self, index: int) -> int:
        return self._index.labels[self._clips[index][0]]

    def key(self, index: int) -> bytes:
        """Return the key of the file, so that all its clips are on the same side of the split."""
        return self._index.key(self._clips[index][0])


def media_index(
    spec: DataSpec, kind: Kind, inspect: Callable[[media.Encoded], tuple[float | None, ...]]
) -> MediaIndex:
    """Return the files below `data.root`, or the rows of parquet files.

    Labels come from a table (`metadata.csv`, `metadata.jsonl`) if there is one, else from the subfolders.
    `inspect` decodes an item and returns its survey. Raises `UserError` for a root without files of the kind,
    and for every item that `inspect` rejects.
    """
    root = data_path(spec, f"{kind.expected}, or parquet with a column of them")

    def inspected(item: Encoded) -> tuple[Any, ...]:
        content = item.read()
        if not content:
            raise UserError(f"{item.where} is empty: 0 bytes; replace or remove it")
        return hashlib.sha256(content).hexdigest(), *inspect(media.Encoded(item.where, content))

    if holds_parquet(root):
        rows = read_rows(spec, root)
        surveys = survey_rows(root, rows, f"{kind.plural} {rows.key}", inspected)
        items = [item for file in rows.files for item in rows.inside(file)]
        return MediaIndex(
            items, rows.labels.tolist(), rows.classes, list(rows.class_names), surveys, rows.label_source,
            rows.problem, rows.skipped, len(rows.files),
        )  # fmt: skip
    if not root.is_dir():
        raise UserError(
            f"data.root = {root} is a file, expected {kind.expected}, or parquet with a column of them"
        )
    found = list_files(root, kind, spec)
    files = _Files(root, found.names)
    surveys = survey(root, found.names, lambda name: [files.file(name)], kind.plural, inspected)
    return MediaIndex(
        files, found.labels, found.classes, found.class_names, surveys, found.label_source, found.problem,
        found.skipped, len(files),
    )  # fmt: skip


class _Files(Sequence[Encoded]):
    """The files of a folder, opened by name when they are needed."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self._root, self._names = root, names

    def __len__(self) -> int:
        return len(self._names)

    # Any: a number; the overload of slices is not used.
    def __getitem__(self, index: Any) -> Any:
        return self.file(str(self._names[index]))

    def file(self, name: str) -> Encoded:
        path = self._root / name

        def read() -> bytes:
            try:
                return path.read_bytes()
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}") from error

        return Encoded(read, str(path))


def unusable(error: MetricError) -> UserError:
    """Return the error about a file that cannot be used, with what to do if the reader does not state it."""
    text = str(error)
    return UserError(text if ";" in text else f"{text}; replace or remove it")


def holds_parquet(root: Path) -> bool:
    """Return whether a path is a parquet file of samples, or a folder with one."""
    try:
        if root.is_dir():
            return any(is_content(root / name) for name in walk(root))
    except MetricError as error:
        raise UserError(f"{error}; replace it") from error
    return root.suffix == ".parquet"
