"""What a data set is, and the split by hash.

A sample is a pure function of its index. Samples of every modality are uint8 arrays until they enter the network as float32 in
[-1, 1]: images (channels, height, width), videos (channels, frames, height, width), sound as a log spectrogram (bands, frames).
Several parts that belong together lie flattened one behind the other. A data set never downloads anything.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from harness import registry
from harness.errors import UserError
from harness.spec import DataSpec

if TYPE_CHECKING:
    from torch import Tensor


class Sample(NamedTuple):
    x: np.ndarray
    """uint8, of the data set's shape; (N,) for several parts."""
    label: int


class Dataset(Protocol):
    """Made by its class from a `DataSpec`; raises `UserError` for anything missing, broken or inconsistent."""

    modality: str
    """`image`, `video`, `audio` or `joint`: a video with its sound, which has `beside`, the shapes of the parts behind the
    first."""
    classes: int
    """Labels are 0 .. classes - 1; 1 when the data have none."""
    shape: tuple[int, ...]
    """(channels, *axes) of every sample, or of its first part."""
    fingerprint: str
    """16 hex digits of a sha256 over content, labels included: equal for equal data wherever it lies."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample: ...

    def key(self, index: int) -> bytes:
        """What decides on which side of the split a sample falls: its content, or its name where content is costly."""
        ...


class Split(NamedTuple):
    train: np.ndarray
    held_out: np.ndarray


def open_dataset(spec: DataSpec) -> Dataset:
    """The data set of a spec; raises `UserError` when its content is not what the spec's fingerprint says."""
    return _open(spec, _stamp(Path(spec.root)) if spec.root else None)


@lru_cache(maxsize=4)
def _open(spec: DataSpec, stamp: tuple[int, int] | None) -> Dataset:
    from harness.data.parts import kept

    dataset = registry.load("dataset", spec.name)(spec)
    if spec.fingerprint and spec.fingerprint != dataset.fingerprint:
        raise UserError(
            f"data.root {spec.root or spec.name} holds other data than this spec was made for: "
            f"fingerprint {dataset.fingerprint}, expected {spec.fingerprint}; give the folder with the original data"
        )
    return kept(dataset, spec)


def _stamp(root: Path) -> tuple[int, int] | None:
    """Tells a file from what it was before, so that one process does not go on with old content."""
    try:
        found = root.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def split(dataset: Dataset, held_out: float) -> Split:
    """Indices of the training and the held-out side. A sample's side depends on its own key alone: equal images fall on
    the same side, and adding data moves nobody."""
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


def shapes_of(dataset: Dataset) -> tuple[tuple[int, ...], ...]:
    """Of every part of its samples."""
    return (tuple(dataset.shape), *getattr(dataset, "beside", ()))


def x_shape(dataset: Dataset) -> tuple[int, ...]:
    """Of a sample: that of its one part, or (N,) for several."""
    shapes = shapes_of(dataset)
    return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)


def pictured(dataset: Dataset) -> Dataset:
    """What a data set shows: itself, or the images that its latents were made of."""
    return getattr(dataset, "pictures", dataset)


def outlined(spec: DataSpec) -> Dataset:
    """The data set of a spec, or, where that has no root, what the spec alone tells of its shape and classes."""
    outline = getattr(registry.load("dataset", spec.name), "outline", None)
    return open_dataset(spec) if spec.root or outline is None else outline(spec)


def from_pixels(x: np.ndarray) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    import torch

    return torch.from_numpy(x).float().div_(127.5).sub_(1)


def images(dataset: Dataset, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples as people, encoders and metrics see them: uint8 (n, *shape), labels int64 (n,)."""
    seen = pictured(dataset)
    samples = [seen.sample(int(index)) for index in indices]
    return np.stack([s.x for s in samples]), np.array([s.label for s in samples], dtype=np.int64)
