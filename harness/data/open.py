"""Data sets by spec: opening, splitting into training and held-out samples, and reading many samples."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harness.config import registry
from harness.config.data_spec import DataSpec
from harness.data.dataset import Capabilities, Dataset, pictured
from harness.data.parts import without_removed_parts
from harness.errors import UserError
from harness.files.stamps import is_doubtful, tree_stamp

if TYPE_CHECKING:
    from torch import Tensor


class Split(NamedTuple):
    train: np.ndarray
    held_out: np.ndarray


def open_dataset(spec: DataSpec) -> Dataset:
    """Return the data set of a spec. Raises `UserError` if its content does not match the spec's
    fingerprint."""
    found = tree_stamp(Path(spec.root).expanduser()) if spec.root else None
    stamp, changed = found or ("", 0)
    unpinned = spec.model_copy(update={"fingerprint": ""})
    # A stamp in doubt cannot find an opened data set of other content, so the files are read again.
    dataset = _open.__wrapped__(unpinned, stamp) if is_doubtful(changed) else _open(unpinned, stamp)
    if spec.fingerprint and spec.fingerprint != dataset.fingerprint:
        raise UserError(
            f"data.root {spec.root or spec.name} holds other data than this spec was planned with: "
            f"fingerprint {dataset.fingerprint}, expected {spec.fingerprint}; set data.root to the original "
            "data"
        )
    return dataset


@lru_cache(maxsize=4)
def _open(spec: DataSpec, stamp: str) -> Dataset:
    return without_removed_parts(registry.load("dataset", spec.name)(spec), spec)


def split(dataset: Dataset, held_out: float) -> Split:
    """Return the indices of the training and the held-out samples.

    The side of a sample depends only on its key. Equal images are on the same side, and adding data moves no
    sample.
    """
    is_held_out = np.array([is_held_out_key(dataset.key(i), held_out) for i in range(len(dataset))])
    if is_held_out.all():
        raise UserError(
            f"data.held_out = {held_out} leaves none of the {len(dataset)} samples to train on; lower it"
        )
    return Split(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))


def is_held_out_key(key: bytes, held_out: float) -> bool:
    """Return whether the sample of a key is among a share of held-out samples."""
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") / 2**32 < held_out


def outlined(spec: DataSpec) -> Dataset:
    """Return the data set of a spec. If the spec has no root, return an outline of shape and classes if the
    class has one."""
    outline = Capabilities(registry.load("dataset", spec.name)).outline
    return open_dataset(spec) if spec.root or outline is None else outline(spec)


def from_pixels(x: np.ndarray) -> Tensor:
    """Convert uint8 to float32 in [-1, 1]; float32 is in the network's units already."""
    import torch

    if x.dtype == np.float32:
        return torch.from_numpy(x)
    return torch.from_numpy(x).float().div_(127.5).sub_(1)


def images(dataset: Dataset, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return samples as encoders and metrics read them, uint8 (n, *shape), and labels int64 (n,)."""
    source = pictured(dataset)
    samples = [source.sample(int(index)) for index in indices]
    return np.stack([s.x for s in samples]), np.array([s.label for s in samples], dtype=np.int64)
