"""Encoded video and audio, in folders or in parquet rows, and the optional packages that decode them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from metrics.files.listing import Listing, Skipped, list_folder, walk
from metrics.files.parquet_files import bounded_batches, column_names, is_table, parquet_files
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
    plural: str
    suffixes: frozenset[str]
    not_read: frozenset[str]
    """Suffixes that raise an error, because ignoring such files would lose data silently."""
    convert: str
    """The format to convert those to."""

    @property
    def expected(self) -> str:
        return f"a folder of {self.plural} ({', '.join(sorted(self.suffixes))}), one subfolder per class"


IMAGE = Kind(
    "image",
    "images",
    frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp"}),
    frozenset(
        {
            ".gif", ".apng", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".ppm",
            ".pgm", ".pbm", ".pnm", ".dib", ".ico", ".tga", ".psd", ".svg", ".exr",
        }
    ),
    "PNG",
)  # fmt: skip
VIDEO = Kind(
    "video",
    "videos",
    frozenset({".mp4", ".m4v", ".f4v", ".mov", ".qt", ".avi", ".mkv", ".webm", ".gif", ".mpg", ".mpeg"}),
    frozenset(
        {
            ".wmv", ".asf", ".flv", ".ogv", ".ts", ".mts", ".m2ts", ".m1v", ".m2v", ".mpe", ".3gp", ".3g2",
            ".vob", ".mxf", ".dv", ".rm", ".webp",
        }
    ),
    "MP4",
)  # fmt: skip
AUDIO = Kind(
    "audio",
    "recordings",
    frozenset(
        {
            ".wav", ".wave", ".w64", ".aif", ".aiff", ".aifc", ".flac", ".ogg", ".oga", ".opus",
            ".mp2", ".mp3", ".m4a", ".m4b", ".aac",
        }
    ),
    frozenset(
        {
            ".wma", ".amr", ".au", ".snd", ".caf", ".ac3", ".mid", ".midi", ".ape", ".wv", ".ra", ".3gp",
            ".webm", ".mka",
        }
    ),
    "WAV",
)  # fmt: skip


def holds(path: Path, kind: Kind) -> bool:
    """Return True for a file of that kind, a parquet file with its column, or a folder with any such file."""
    if path.is_dir():
        return any(_is_of(path / name, kind) for name in walk(path) if not is_table(path / name))
    return _is_of(path, kind)


def listing(
    root: Path,
    kind: Kind,
    ignored: Collection[str] = (),
    advance: Callable[[int], None] = lambda _: None,
    companions: Collection[str] = (),
) -> Listing:
    """Return the files of a kind below a folder.

    `ignored` are names of other files that the caller reads, and `companions` suffixes of files that it reads
    next to those of the kind. `advance` receives the progress of the walk.

    Raises `MetricError` for a file of the kind in a format that is not supported.
    """
    others = {other.plural: other.suffixes for other in (IMAGE, VIDEO, AUDIO) if other.name != kind.name}
    found = list_folder(root, kind.suffixes, kind.not_read, ignored, others, advance, companions)
    if found.refused:
        file = root / found.refused
        raise MetricError(
            f"{file}: {file.suffix.lower()} {kind.plural} are not supported; convert them to {kind.convert}, "
            "or move them out of the folder"
        )
    return found


def encoded(path: Path, kind: Kind) -> Iterator[Encoded]:
    """Yield the files of a folder in the order of their names, or the rows of a parquet file, still encoded.

    A folder may also hold parquet files. Raises `MetricError` if there is no such file, and for a row without
    bytes.
    """
    files = media_files(path, kind).files
    for file in files:
        yield from _rows(file, kind) if file.suffix.lower() == ".parquet" else [Encoded(str(file), file)]


class MediaFiles(NamedTuple):
    """The files of a kind that a path holds, in order, and those left out."""

    files: list[Path]
    skipped: tuple[Skipped, ...]


def media_files(path: Path, kind: Kind) -> MediaFiles:
    """Return the files and parquet files of a kind. Raises `MetricError` if the path has no such file."""
    if not path.exists():
        raise MetricError(f"cannot read {path}: no such file or folder")
    found = _in_folder(path, kind) if path.is_dir() else MediaFiles([path] if _is_of(path, kind) else [], ())
    if not found.files:
        known = " ".join(sorted(kind.suffixes))
        raise MetricError(
            f"{path} holds no {kind.name}; expected files ({known}) or parquet with a column '{kind.name}'"
        )
    return found


def _in_folder(path: Path, kind: Kind) -> MediaFiles:
    found = listing(path, kind)
    tables, left = parquet_files(path)
    tables = [file for file in tables if _is_of(file, kind)]
    files = sorted([*(path / name for name in found.names), *tables])
    return MediaFiles(files, left if tables else found.skipped)


def _is_of(file: Path, kind: Kind) -> bool:
    suffix = file.suffix.lower()
    return kind.name in column_names(file) if suffix == ".parquet" else suffix in kind.suffixes


def package(name: str, extra: str) -> ModuleType:
    """Import an optional package; if it is missing, raise `MetricError` with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MetricError(
            f"the package '{name}' is not installed; run: pip install 'flowrace[{extra}]'"
        ) from error


def _rows(file: Path, kind: Kind) -> Iterator[Encoded]:
    row = 0
    for batch in bounded_batches(file, [kind.name]):
        for cell in batch.column(0).to_pylist():
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            if not isinstance(content, bytes):
                raise MetricError(f"{file} row {row}: column '{kind.name}' has no bytes")
            yield Encoded(f"{file} row {row}", content)
            row += 1
