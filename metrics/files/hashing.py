"""The sha256 of a file, with or without a check against an expected one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from metrics.value import MetricError

CONTENT = (".json", ".safetensors", ".txt", ".model")
"""Ends of the names of the files of a network on which its outputs depend."""
NO_CONTENT = (
    "config_sentence_transformers.json", "data_config.json", "modules.json", "sentence_bert_config.json",
)  # fmt: skip
"""Files of sentence-transformers with which the outputs of the network do not change."""


def sha256_of(file: Path) -> str:
    """Return the sha256 of a file in hex; raises `OSError` if it cannot be read."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """Return the sha256 in hex over the weights, settings and vocabulary of a network in a folder.

    The place and other files do not matter. Raises `MetricError` for a file that cannot be read.
    """
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in CONTENT and file.name not in NO_CONTENT and file.is_file():
            total.update(f"{file.name} {file_sha256(file)}\n".encode())
    return total.hexdigest()


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
