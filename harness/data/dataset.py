"""The protocol of a data set, and the capabilities that a data set may have in addition.

A sample is a pure function of its index. Samples of every modality are uint8 arrays until they enter the
network as float32 in [-1, 1]: images (channels, height, width), videos (channels, frames, height, width),
sound as a log spectrogram (bands, frames). The parts of a sample that has several are flattened and
concatenated. A data set never downloads anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.config.spec import DataSpec


class Sample(NamedTuple):
    x: np.ndarray
    """uint8, of the data set's shape; (N,) for several parts."""
    label: int


class Dataset(Protocol):
    """A data set, constructed by its class from a `DataSpec`.

    Raises `UserError` for anything missing, broken or inconsistent. `Capabilities` lists what else a data set
    may declare.
    """

    @property
    def modality(self) -> str:
        """`image`, `video`, `audio` or `joint`: a video with its sound, whose `beside` has the shape of the
        sound."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes: labels are 0 .. classes - 1; 1 when the data have no labels."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *axes) of every sample, or of its first part."""
        ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits of a sha256 over content and labels: equal for equal data at any location."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample: ...

    def key(self, index: int) -> bytes:
        """Return what decides on which side of the split a sample is: its content, or its name where content
        is costly."""
        ...


class Latent(Dataset, Protocol):
    """A data set of encoded samples."""

    def label(self, index: int) -> int: ...

    def draws(self, place: np.ndarray, flipped: Tensor | None, noise: Tensor) -> Tensor:
        """Draw latents at data set indices."""
        ...


@dataclass(frozen=True)
class Capabilities:
    """Optional members of a data set, or of its class, with their defaults.

    A data set declares a capability by having a member of that name. This class is the only place that asks
    for one, so a plug-in declares no more than it has. Members are read when asked for: `pictures` may open
    files.
    """

    # A class, or an instance, of any package: only its members count.
    of: Any

    def has(self, name: str) -> bool:
        """Return whether a member exists, for metrics that need knowledge of a generated world (`motion`,
        `words`, ...)."""
        return hasattr(self.of, name)

    @property
    def modality(self) -> str:
        """The modality that a class declares."""
        return getattr(self.of, "modality", "image")

    @property
    def modality_in(self) -> Callable[[DataSpec], str] | None:
        """The modality of the data of a spec, for a class whose files decide it."""
        return getattr(self.of, "modality_in", None)

    @property
    def outline(self) -> Callable[[DataSpec], Dataset] | None:
        """Shape, classes and modality from a spec without data, for a plan."""
        return getattr(self.of, "outline", None)

    @property
    def reads(self) -> tuple[str, ...] | None:
        """The optional fields of `data` that the class reads; None for a class that does not declare them."""
        return getattr(self.of, "reads", None)

    @property
    def beside(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts of a sample after the first."""
        return getattr(self.of, "beside", ())

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(getattr(self.of, "class_names", ()))

    @property
    def label(self) -> Callable[[int], int] | None:
        """The label at an index, without decoding the sample."""
        return getattr(self.of, "label", None)

    @property
    def pictures(self) -> Dataset | None:
        """The samples that latents were encoded from."""
        return getattr(self.of, "pictures", None)

    @property
    def latent(self) -> Latent | None:
        """The data set itself if its samples are latents."""
        return self.of if hasattr(self.of, "draws") else None

    @property
    def codec(self) -> Callable[[torch.device], Any] | None:
        """Open the `Codec` that decodes the samples (harness.latents, which imports this module)."""
        return getattr(self.of, "codec", None)

    @property
    def wave(self) -> Callable[[int, int], np.ndarray] | None:
        """The waveform at an index and a sampling rate, float64 (samples,) in [-1, 1], as long as its
        spectrogram."""
        return getattr(self.of, "wave", None)

    @property
    def position(self) -> np.ndarray | None:
        """(videos, frames, 2): row and column of the object in each frame, for generated worlds and their
        parts."""
        return getattr(getattr(self.of, "whole", self.of), "position", None)


def label_of(dataset: Dataset, index: int) -> int:
    """Return a sample's label, without decoding the sample if the data set can."""
    known = Capabilities(dataset).label
    return known(index) if known else dataset.sample(index).label


def shapes_of(dataset: Dataset) -> tuple[tuple[int, ...], ...]:
    """Return the shape of each part of the samples."""
    return (tuple(dataset.shape), *Capabilities(dataset).beside)


def x_shape(dataset: Dataset) -> tuple[int, ...]:
    """Return the shape of a sample: that of its one part, or (N,) for several."""
    shapes = shapes_of(dataset)
    return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)


def pictured(dataset: Dataset) -> Dataset:
    """Return the data set that people, encoders and metrics are given: itself, or what its latents were
    encoded from."""
    pictures = Capabilities(dataset).pictures
    return dataset if pictures is None else pictures
