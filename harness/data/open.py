"""Data sets by spec: opened once, split by hash, read in batches of bytes."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harness.config import registry
from harness.config.spec import DataSpec
from harness.data.dataset import Capabilities, Dataset, pictured
from harness.data.parts import kept
from harness.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


class Split(NamedTuple):
    train: np.ndarray
    held_out: np.ndarray


def open_dataset(spec: DataSpec) -> Dataset:
    """Return the data set of a spec. Raises `UserError` if its content does not match the spec's
    fingerprint."""
    return _open(spec, _stamp(Path(spec.root)) if spec.root else None)


@lru_cache(maxsize=4)
def _open(spec: DataSpec, stamp: tuple[int, int] | None) -> Dataset:
    dataset = registry.load("dataset", spec.name)(spec)
    if spec.fingerprint and spec.fingerprint != dataset.fingerprint:
        raise UserError(
            f"data.root {spec.root or spec.name} holds other data than this spec was made for: "
            f"fingerprint {dataset.fingerprint}, expected {spec.fingerprint}; set data.root to the original data"
        )
    return kept(dataset, spec)


def _stamp(root: Path) -> tuple[int, int] | None:
    """Return a value that changes with a file, so that one process does not reuse old content."""
    try:
        found = root.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def split(dataset: Dataset, held_out: float) -> Split:
    """Return the indices of the training and the held-out side.

    A sample's side depends on its own key only: equal images are on the same side, and adding data moves no
    sample.
    """
    share = [
        int.from_bytes(hashlib.sha256(dataset.key(i)).digest()[:4], "big") / 2**32
        for i in range(len(dataset))
    ]
    is_held_out = np.array(share) < held_out
    if is_held_out.all():
        raise UserError(
            f"data: nothing is left to train on with held_out = {held_out} of {len(dataset)} samples"
        )
    return Split(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))


def outlined(spec: DataSpec) -> Dataset:
    """Return the data set of a spec, or, if it has no root, an outline of its shape and classes from the spec
    alone."""
    outline = Capabilities(registry.load("dataset", spec.name)).outline
    return open_dataset(spec) if spec.root or outline is None else outline(spec)


def from_pixels(x: np.ndarray) -> Tensor:
    """Convert uint8 to float32 in [-1, 1]."""
    import torch

    return torch.from_numpy(x).float().div_(127.5).sub_(1)


def images(dataset: Dataset, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return samples as given to people, encoders and metrics: uint8 (n, *shape), and labels int64 (n,)."""
    shown = pictured(dataset)
    samples = [shown.sample(int(index)) for index in indices]
    return np.stack([s.x for s in samples]), np.array([s.label for s in samples], dtype=np.int64)
