"""Bounds and faults of npy, npz and gzipped files."""

from __future__ import annotations

import gzip
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

from metrics.value import MetricError

BROKEN = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    AttributeError,
    TypeError,
    RuntimeError,
    SyntaxError,
    OverflowError,
    MemoryError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors of numpy, zipfile and gzip for damaged files. zipfile raises RuntimeError for what it cannot unpack,
and numpy's parser of headers those of Python."""
EXPANDS, SPARE = 100, 2**28
"""Content may take EXPANDS times the bytes of its file, and SPARE bytes more, when it is unpacked."""


def bound_of(file: Path) -> int:
    """Return the number of bytes to which the content of a file may unpack."""
    return EXPANDS * file.stat().st_size + SPARE


def check_members(file: Path) -> None:
    """Raise `MetricError` for an npz file whose arrays unpack to more than a bound, by their headers."""
    with zipfile.ZipFile(file) as archive:
        total = sum(member.file_size for member in archive.infolist())
    if total > bound_of(file):
        raise MetricError(f"{file} unpacks to {total:,} bytes, more than {bound_of(file):,}; save it plainly")


def unzipped(file: Path) -> bytes:
    """Return the content of a gzipped file. Raises `MetricError` if it unpacks to more than a bound."""
    bound = bound_of(file)
    with gzip.open(file) as content:
        found = content.read(bound + 1)
    if len(found) > bound:
        raise MetricError(f"{file} unpacks to more than {bound:,} bytes; save it unzipped")
    return found
