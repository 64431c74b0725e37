"""Tensors that can be made again, kept in a file: whole, verified, made once by one process."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from metrics.value import MetricError


class Saved(NamedTuple):
    tensors: dict[str, Tensor]
    meta: dict[str, str]

    @property
    def sha256(self) -> str:
        """Over names, types, shapes, values and meta."""
        known = hashlib.sha256(json.dumps(self.meta, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors.items()):
            known.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            known.update(tensor.contiguous().numpy().data)
        return known.hexdigest()


def kept(file: Path, make: Callable[[], Saved]) -> Saved:
    """What the file holds; made, and written, where it is absent, cut short or altered.

    Raises `MetricError` where the folder cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file.with_suffix(".lock")):
            saved = _read(file)
            if saved is None:
                saved = make()
                _write(file, saved)
            return saved
    except (OSError, safetensors.SafetensorError) as error:
        raise MetricError(f"cannot keep {file}: {getattr(error, 'strerror', None) or error}") from error


def write_saved(file: Path, saved: Saved) -> None:
    """Write a file that `read_saved` reads; raises `MetricError` where it cannot be written."""
    try:
        _write(file, saved)
    except (OSError, safetensors.SafetensorError) as error:
        raise MetricError(f"cannot write {file}: {error}") from error


def read_saved(file: Path, what: str) -> Saved:
    """What a file holds; raises `MetricError` for one that is absent, cut short or altered."""
    try:
        saved = _read(file)
    except OSError as error:
        raise MetricError(f"cannot read {file}: {error.strerror}") from error
    if saved is None:
        raise MetricError(f"{file} is absent, cut short or altered (its checksum is wrong): make {what} anew")
    return saved


def _read(file: Path) -> Saved | None:
    """None for a file that is absent, cut short or altered."""
    try:
        with safetensors.safe_open(file, "pt") as content:
            meta = content.metadata() or {}
            saved = Saved({name: content.get_tensor(name) for name in content.keys()}, meta)  # noqa: SIM118
    except (FileNotFoundError, safetensors.SafetensorError):
        return None
    return saved if meta.pop("sha256", None) == saved.sha256 else None


def _write(file: Path, saved: Saved) -> None:
    """Under a temporary name, forced to the disk, renamed."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        safetensors.torch.save_file(saved.tensors, temporary, {**saved.meta, "sha256": saved.sha256})
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with open(file, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes
        yield
