"""Cached tensors in a file with a checksum, computed once by one process and recomputed if damaged."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from metrics.value import MetricError


class Saved(NamedTuple):
    """Named tensors with metadata."""

    tensors: dict[str, Tensor]
    meta: dict[str, str]

    @property
    def sha256(self) -> str:
        """Checksum over names, types, shapes, values and metadata."""
        digest = hashlib.sha256(json.dumps(self.meta, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


def kept(file: Path, make: Callable[[], Saved], *, waiting: Callable[[], None] = lambda: None) -> Saved:
    """Return the content of a cache file; if it is missing, truncated or altered, make and write it.

    One process makes it while the others wait, after a call of `waiting`. Raises `MetricError` if the folder
    cannot be written, and whatever `make` raises.
    """
    with _cache_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(file.with_suffix(".lock"), waiting)
    # Closing the file releases the lock, as the end of the process does.
    with lock:
        with _cache_errors(file):
            saved = _read(file)
        if saved is None:
            saved = make()
            with _cache_errors(file):
                _write(file, saved)
        return saved


def write_saved(file: Path, saved: Saved) -> None:
    """Write a file for `read_saved`; raises `MetricError` if it cannot be written."""
    try:
        _write(file, saved)
    except (OSError, safetensors.SafetensorError) as error:
        raise MetricError(f"cannot write {file}: {error}") from error


def read_saved(file: Path, what: str) -> Saved:
    """Return the content of a file of `what`.

    Raises `MetricError` if the file is missing, truncated or altered.
    """
    try:
        saved = _read(file)
    except OSError as error:
        raise MetricError(f"cannot read {file}: {error.strerror}") from error
    if saved is None:
        raise MetricError(
            f"{file} is missing, truncated or altered (its checksum is wrong); create {what} again"
        )
    return saved


def _read(file: Path) -> Saved | None:
    """Return the content of a file, or None if it is missing, truncated or altered."""
    try:
        with safetensors.safe_open(file, "pt") as content:
            meta = content.metadata() or {}
            saved = Saved({name: content.get_tensor(name) for name in content.keys()}, meta)  # noqa: SIM118
            expected = meta.pop("sha256", None)
        return saved if expected == saved.sha256 else None
    # TypeError is raised for types that numpy lacks, for example float8, which nothing here writes.
    except (FileNotFoundError, safetensors.SafetensorError, TypeError):
        return None


def _write(file: Path, saved: Saved) -> None:
    """Write the file atomically: under a temporary name, flushed to disk, then renamed.

    The temporary file is in a folder, because safetensors writes a second one next to it. What a killed
    process left is removed.
    """
    folder = file.with_name(f".{file.name}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    temporary = folder / file.name
    try:
        safetensors.torch.save_file(saved.tensors, temporary, {**saved.meta, "sha256": saved.sha256})
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lock(file: Path, waiting: Callable[[], None]) -> IO[str]:
    """Return an open file on which this process holds an exclusive lock."""
    # The caller closes it. Nothing is truncated, in case the name is a link to another file.
    lock = open(file, "a")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


@contextmanager
def _cache_errors(file: Path) -> Iterator[None]:
    """Turn the errors of a cache file that cannot be written into `MetricError`."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise MetricError(
            f"cannot write the cache file {file}: {getattr(error, 'strerror', None) or error}"
        ) from error
