"""The protocol of a data set, and its optional capabilities.

A sample is a pure function of its index. Samples of every modality are uint8 arrays until they enter the
network as float32 in [-1, 1]. Images are (channels, height, width), videos (channels, frames, height, width),
sound is a log-mel spectrogram (bands, frames). A sample of several parts is their flattened concatenation.
Samples with the state and the actions of a robot are float32 in the network's units already. A data set never
downloads anything.
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

    from harness.config.data_spec import DataSpec


USUAL_CAPTIONS = "usual"
"""The value of `data.caption_key` that reads the column of captions with a usual name, or generated ones."""


class Sample(NamedTuple):
    x: np.ndarray
    """uint8, of the data set's shape; (N,) if the sample has several parts. float32 for those of a robot."""
    label: int


class Dataset(Protocol):
    """A data set, constructed by its class from a `DataSpec`.

    Raises `UserError` for anything missing, broken or inconsistent. `Capabilities` lists what else a data set
    may declare.
    """

    @property
    def modality(self) -> str:
        """`image`, `video`, `audio`, `joint` for a video with sound, whose `beside` is the shape of the
        sound, or `robot` for a video with the state and the actions of a robot."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes, 1 for data without labels. Labels are 0 .. classes - 1."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, *axes) of every sample, or of its first part if it has several."""
        ...

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of a sha256 over content and labels, the same at any location."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample: ...

    def key(self, index: int) -> bytes:
        """Return the bytes that assign a sample to a side of the split: its content, or its name if reading
        the content is expensive."""
        ...


class Latent(Dataset, Protocol):
    """A data set of encoded samples."""

    def label(self, index: int) -> int: ...

    def draws(self, place: np.ndarray, flipped: Tensor | None, noise: Tensor) -> Tensor:
        """Draw latents float32 (B, c, *places) at data set indices (B,), of mirrored samples where `flipped`;
        `noise` has the same shape."""
        ...


@dataclass(frozen=True)
class Capabilities:
    """Optional members of a data set, or of its class, with their defaults.

    A data set declares a capability by having a member of that name. This class is the only place that asks
    for one, so a plug-in declares no more than it has. Members are read lazily, because `pictures` may open
    files.
    """

    # Any: a class or an instance from any package.
    of: Any

    def has(self, name: str) -> bool:
        """Return whether a member exists. Metrics of generated data need some, for example `motion` or
        `words`."""
        return hasattr(self.of, name)

    @property
    def modality(self) -> str:
        """The modality that the class declares, `image` by default."""
        return getattr(self.of, "modality", "image")

    @property
    def modality_in(self) -> Callable[[DataSpec], str] | None:
        """A function from a spec to its modality, for a class whose modality depends on its files."""
        return getattr(self.of, "modality_in", None)

    @property
    def outline(self) -> Callable[[DataSpec], Dataset] | None:
        """A function from a spec to shape, classes and modality, for a plan without data."""
        return getattr(self.of, "outline", None)

    @property
    def reads(self) -> tuple[str, ...] | None:
        """The optional fields of `data` that the class reads; None if it does not declare them."""
        return getattr(self.of, "reads", None)

    @property
    def beside(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts of a sample after the first."""
        return getattr(self.of, "beside", ())

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the parts of a sample if their shapes do not determine them."""
        return getattr(self.of, "kinds", ())

    @property
    def with_parts(self) -> Callable[[tuple[str, ...]], Dataset] | None:
        """A function from kinds of parts to the data set of these parts, if it removes parts itself."""
        return getattr(self.of, "with_parts", None)

    @property
    # Any: `RobotLayout` is in harness.data.robot, which imports this module.
    def robot(self) -> Any:
        """The layout of the samples of a robot, which its policy needs; None for other data."""
        return getattr(self.of, "robot", None)

    @property
    def resizes(self) -> bool:
        """True if the frames of a robot were resized, so that those of an environment are resized alike."""
        return getattr(self.of, "resizes", False)

    @property
    def kept(self) -> str:
        """Hash of the samples that are kept if the spec leaves some out, otherwise empty; the fingerprint is
        that of all."""
        return getattr(self._files, "kept", "")

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(getattr(self._files, "class_names", ()))

    @property
    def label_source(self) -> str:
        """The source of labels, for example `class folders`; empty if the class does not state it."""
        return getattr(self._files, "label_source", "")

    @property
    def label_problem(self) -> str:
        """The reason why existing labels cannot be used, for example hidden ones; empty if they can."""
        return getattr(self._files, "label_problem", "")

    @property
    def files(self) -> int | None:
        """Number of files that were read; None if the class does not state it."""
        return getattr(self._files, "files", None)

    @property
    def skipped(self) -> tuple[Any, ...]:
        """The files that were left out: `Skipped` of metrics.files.listing."""
        return tuple(getattr(self._files, "skipped", ()))

    @property
    def stored(self) -> Any:
        """The form of the samples on disk: `Stored` of harness.data.stored; None for generated data."""
        return getattr(self._files, "stored", None)

    @property
    def _files(self) -> Any:
        """The data set that read the files: that of a part is the data set of all parts."""
        return getattr(self.of, "whole", self.of)

    @property
    def label(self) -> Callable[[int], int] | None:
        """A function from an index to the label that does not decode the sample."""
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
    # Any: `Codec` is in harness.latents, which imports this module.
    def codec(self) -> Callable[[torch.device], Any] | None:
        """A function that opens the `Codec` that decodes the samples."""
        return getattr(self.of, "codec", None)

    @property
    def undecoded(self) -> str:
        """The reason why latents cannot be decoded, empty if they can and for other samples."""
        return getattr(self.of, "undecoded", "")

    @property
    def undecoded_in(self) -> Callable[[DataSpec], str] | None:
        """A function from a spec to the reason why its latents cannot be decoded, empty if they can."""
        return getattr(self.of, "undecoded_in", None)

    @property
    def decoded_by(self) -> Callable[[DataSpec], Dataset]:
        """A function that returns the same latents, which the codec of another spec decodes."""
        return self.of.decoded_by

    @property
    def wave(self) -> Callable[[int, int], np.ndarray] | None:
        """A function from index and sampling rate to the waveform, float64 (samples,) in [-1, 1], as long as
        the spectrogram."""
        return getattr(self.of, "wave", None)

    @property
    def targets(self) -> Callable[[int], np.ndarray] | None:
        """A function from an index to numbers about a sample, float32 (N,), from which a local encoder of
        data without labels learns; None without any."""
        return getattr(self.of, "targets", None)

    @property
    def captions(self) -> Callable[[int], tuple[str, ...]] | None:
        """A function from an index to the captions of a sample, the most detailed one first; a sample without
        any has none. None for data without captions."""
        return getattr(self._files, "captions", None)

    @property
    def captioned(self) -> bool:
        """True for data with captions, and for a class whose files may have some."""
        reads = "caption_key" in (self.reads or ())
        return reads or self.captions is not None or getattr(self.of, "captioned", False)

    @property
    # Any: `CaptionStates` is in harness.latents, which imports this module.
    def caption_states(self) -> Any:
        """Stored features of captions, whose texts need not be known; None for data without them."""
        return getattr(self.of, "caption_states", None)

    @property
    def caption_source(self) -> str:
        """The source of captions, for example a column; empty if the class does not state it."""
        return getattr(self._files, "caption_source", "")

    @property
    def sample_name(self) -> Callable[[int], str] | None:
        """A function from an index to the name of a sample in messages, for example its file."""
        return getattr(self.of, "sample_name", None)

    @property
    # Any: a record that the generator and its metrics share.
    def truth(self) -> Callable[[int], Any] | None:
        """A function from an index to what is known about a generated sample: objects, colours, counts."""
        return getattr(self._files, "truth", None)

    @property
    def states(self) -> tuple[str, ...]:
        """The attributes that captions of generated samples state, for example `count`."""
        return tuple(getattr(self._files, "states", ()))

    @property
    def caption_attributes(self) -> Callable[[int], tuple[str, ...]] | None:
        """A function from an index to the attributes that its first caption states, for example `two_digits`;
        None if they are not known."""
        return getattr(self._files, "caption_attributes", None)

    @property
    def position(self) -> np.ndarray | None:
        """Row and column of the object in each frame, (videos, frames, 2), for generated data and their
        parts."""
        return getattr(getattr(self.of, "whole", self.of), "position", None)


def label_of(dataset: Dataset, index: int) -> int:
    """Return a sample's label, without decoding the sample if the data set can."""
    label = Capabilities(dataset).label
    return label(index) if label else dataset.sample(index).label


def shapes_of(dataset: Dataset) -> tuple[tuple[int, ...], ...]:
    """Return the shape of each part of the samples."""
    return (tuple(dataset.shape), *Capabilities(dataset).beside)


def part_kinds(dataset: Dataset) -> tuple[str, ...]:
    """Return the kind of each part of the samples, for example `video` and `audio`."""
    from harness.backbone.tokens import kind_of

    return Capabilities(dataset).kinds or tuple(map(kind_of, shapes_of(dataset)))


def x_shape(dataset: Dataset) -> tuple[int, ...]:
    """Return the shape of a sample: that of its only part, or (N,) for several parts."""
    shapes = shapes_of(dataset)
    return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)


def pictured(dataset: Dataset) -> Dataset:
    """Return the data set that encoders and metrics read.

    This is the source of its latents, or the data set itself if its samples are not latents.
    """
    pictures = Capabilities(dataset).pictures
    return dataset if pictures is None else pictures


def content_of(dataset: Dataset) -> str:
    """Return what identifies the samples of a data set in keys of caches.

    It is the fingerprint, followed by the hash of the kept samples if some are left out (`data.episodes`).
    """
    kept = Capabilities(dataset).kept
    return f"{dataset.fingerprint} {kept}" if kept else dataset.fingerprint
