"""Latents that stay in the files of other code: a shard holds positions, int64 (rows, copies, 2).

A position is the number of a file and the byte at which a record begins. The files are memory-mapped, and the
manifest has their sha256.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from harness.errors import UserError
from metrics.files.hashing import sha256_of

BFLOAT16 = "bfloat16"
MAPPED = 64
"""Number of files that are mapped at a time."""


@runtime_checkable
class Linkable(Protocol):
    """Uncompressed records, one after another in a few files."""

    paths: list[Path]
    stored: str
    """The type in the files: float16, float32 or bfloat16."""
    uncompressed: bool
    """False if some record is compressed, so that it cannot be mapped."""

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Return positions, int64 (stop - start, copies, 2)."""
        ...


def can_link(records: object) -> bool:
    """Return whether records can stay where they are."""
    return isinstance(records, Linkable) and bool(records.paths) and records.uncompressed


def linkable(records: object, where: Path) -> Linkable:
    """Return records that can stay where they are. Raises `UserError` for others."""
    if isinstance(records, Linkable) and records.paths:
        return records
    raise UserError(
        f"--link needs latents in zip or safetensors files, but {where} has a file for each sample; leave "
        "it out"
    )


# Any: values of a manifest.
def describe_files(records: Linkable, root: Path) -> dict[str, Any]:
    """Return the fields of a manifest: the type, and the sha256 of each file by its name below a root."""
    base = root if root.is_dir() else root.parent
    files = {str(path.relative_to(base)): sha256_of(path) for path in records.paths}
    return {"root": str(base.resolve()), "dtype": records.stored, "files": files}


class LinkedRecords:
    """Records at positions in the files of a manifest."""

    # Any: values of a manifest.
    def __init__(self, linked: dict[str, Any], shape: tuple[int, ...]) -> None:
        """`shape` is (parts, c, *places) of a record."""
        self._paths = [Path(linked["root"]) / name for name in linked["files"]]
        self._dtype, self._shape = linked["dtype"], shape
        kind = np.dtype("<u2" if self._dtype == BFLOAT16 else self._dtype)
        self._kind, self._size = kind, math.prod(shape) * kind.itemsize
        self._maps: dict[int, np.ndarray] = {}

    def read(self, position: np.ndarray) -> np.ndarray:
        """Return the record at a position."""
        file, begin = position.tolist()
        content = self._mapped(file)[begin : begin + self._size]
        if len(content) != self._size:
            raise UserError(f"{self._paths[file]} ends before byte {begin + self._size}; import it again")
        values = np.frombuffer(content.tobytes(), self._kind).reshape(self._shape)
        return widened(values) if self._dtype == BFLOAT16 else values

    def _mapped(self, file: int) -> np.ndarray:
        if file not in self._maps:
            if len(self._maps) >= MAPPED:
                self._maps.clear()
            try:
                self._maps[file] = np.memmap(self._paths[file], mode="r")
            except (OSError, ValueError) as error:
                raise UserError(f"cannot read {self._paths[file]}: {error}; import it again") from error
        return self._maps[file]


def widened(bits: np.ndarray) -> np.ndarray:
    """Return the float32 values of bfloat16 bits, which are their upper halves."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
