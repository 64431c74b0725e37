"""The sha256 of a file, with or without a check against an expected one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from metrics.value import MetricError


def sha256_of(file: Path) -> str:
    """Return the sha256 of a file in hex; raises `OSError` if it cannot be read."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def file_sha256(file: Path, *, expected: str = "", missing: str = "") -> str:
    """Return the sha256 of a weights file in hex, which must begin with `expected`.

    Raises `MetricError` for another checksum, and for a file that cannot be read. `missing` is the advice to
    the user in that case.
    """
    try:
        checksum = sha256_of(file)
    except OSError as error:
        hint = f"; {missing}" if missing else ""
        raise MetricError(f"cannot read weights {file}: {error.strerror}{hint}") from error
    if not checksum.startswith(expected.lower()):
        raise MetricError(f"{file} is not the expected file: its sha256 is {checksum}, expected {expected}")
    return checksum
