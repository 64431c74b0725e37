"""What a data set is.

A sample is a pure function of its index. Samples of every modality are uint8 arrays until they enter the network as float32 in
[-1, 1]: images (channels, height, width), videos (channels, frames, height, width), sound as a log spectrogram (bands, frames).
Several parts that belong together lie flattened one behind the other. A data set never downloads anything.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np


class Sample(NamedTuple):
    x: np.ndarray
    """uint8, of the data set's shape; (N,) for several parts."""
    label: int


class Dataset(Protocol):
    """Made by its class from a `DataSpec`; raises `UserError` for anything missing, broken or inconsistent."""

    modality: str
    """`image`, `video`, `audio` or `joint`: a video with its sound, which has `beside`, the shapes of the parts behind the
    first."""
    reads: tuple[str, ...]
    """The fields of `data` that mean something to it, of those that not all share (fields.py)."""
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


def label_of(dataset: Dataset, index: int) -> int:
    """A sample's label; nothing is decoded where the data set has `label(index)`, as those on disk do."""
    known = getattr(dataset, "label", None)
    return known(index) if known else dataset.sample(index).label


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
