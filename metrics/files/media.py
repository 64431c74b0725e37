"""Encoded video and audio, in folders or in parquet rows, and the optional packages that decode them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from metrics.value import MetricError


class Encoded(NamedTuple):
    """One encoded video or recording."""

    name: str
    """Name for errors: the file, or the parquet file and its row from 0."""
    source: Path | bytes

    @property
    def content(self) -> bytes:
        """Encoded bytes."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


@dataclass(frozen=True)
class Kind:
    """A kind of media and the files that hold it."""

    name: str
    """Name of the kind and of its parquet column, which is `struct<bytes, path>` or binary."""
    suffixes: frozenset[str]


VIDEO = Kind(
    "video",
    frozenset({".mp4", ".m4v", ".f4v", ".mov", ".qt", ".avi", ".mkv", ".webm", ".gif", ".mpg", ".mpeg"}),
)
AUDIO = Kind(
    "audio",
    frozenset(
        {
            ".wav", ".wave", ".w64", ".aif", ".aiff", ".aifc", ".flac", ".ogg", ".oga", ".opus",
            ".mp2", ".mp3", ".m4a", ".m4b", ".aac",
        }
    ),
)  # fmt: skip


def holds(path: Path, kind: Kind) -> bool:
    """Return True for a file of that kind, a parquet file with its column, or a folder with any such file."""
    if path.is_dir():
        return any(holds(file, kind) for file in path.rglob("*") if file.is_file())
    if path.suffix.lower() == ".parquet":
        return kind.name in _columns(path)
    return path.suffix.lower() in kind.suffixes


def encoded(path: Path, kind: Kind) -> Iterator[Encoded]:
    """Yield the files of a folder in the order of their names, or the rows of a parquet file, still encoded.

    A folder may also hold parquet files. Raises `MetricError` if there is no such file, and for a row without
    bytes.
    """
    if not path.exists():
        raise MetricError(f"cannot read {path}: no such file or folder")
    candidates = (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    files = sorted(file for file in candidates if holds(file, kind))
    if not files:
        known = " ".join(sorted(kind.suffixes))
        raise MetricError(
            f"{path} holds no {kind.name}; expected files ({known}) or parquet with a column '{kind.name}'"
        )
    for file in files:
        yield from _rows(file, kind) if file.suffix.lower() == ".parquet" else [Encoded(str(file), file)]


def package(name: str, extra: str) -> ModuleType:
    """Import an optional package; if it is missing, raise `MetricError` with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MetricError(
            f"the package '{name}' is not installed; run: pip install 'flowrace[{extra}]'"
        ) from error


def _rows(file: Path, kind: Kind) -> Iterator[Encoded]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=64, columns=[kind.name]):
            for cell in batch.column(0).to_pylist():
                content = cell.get("bytes") if isinstance(cell, dict) else cell
                if not isinstance(content, bytes):
                    raise MetricError(f"{file} row {row}: column '{kind.name}' has no bytes")
                yield Encoded(f"{file} row {row}", content)
                row += 1
    except (pa.ArrowException, OSError) as error:
        raise MetricError(f"{file} is a damaged parquet file: {error}") from error


def _columns(file: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file).names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MetricError(f"{file} is not a parquet file: {error}") from error
