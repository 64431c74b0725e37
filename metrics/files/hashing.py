"""The sha256 of a file, plain or checked against an expected one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from metrics.value import MetricError


def sha256_of(file: Path) -> str:
    """Return the sha256 of a file in hex; raises OSError if it cannot be read."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def file_sha256(file: Path, *, expected: str = "", missing: str = "") -> str:
    """Return the sha256 of a file of weights in hex, which must begin with `expected`.

    Raises `MetricError` for another one, and for a file that cannot be read, where `missing` says what to do.
    """
    try:
        found = sha256_of(file)
    except OSError as error:
        hint = f"; {missing}" if missing else ""
        raise MetricError(f"cannot read weights {file}: {error.strerror}{hint}") from error
    if not found.startswith(expected.lower()):
        raise MetricError(
            f"{file} is not the file that was meant: its sha256 is {found}, expected {expected}"
        )
    return found
