"""Sources of samples: images in a folder, npz, npy, parquet or a container, a registered data set,
videos, recordings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.config import registry
from harness.config.data_spec import DataSpec
from harness.data.dataset import Capabilities
from harness.data.disk.kinds import packed_kind
from harness.data.disk.labels import NONE, unlabelled
from harness.data.disk.media import holds_parquet
from harness.data.disk.tables import has_table
from harness.data.found import Found, class_counts, found_in
from harness.data.open import images, open_dataset
from harness.data.stored import Stored, sizes_of, spread, stored_images
from harness.errors import UserError
from harness.evaluation.samples.array_file import ArrayImages, array_batches, array_fingerprint, open_array
from metrics.files.hashing import sha256_of
from metrics.files.headers import Header, header_of
from metrics.files.media import AUDIO, IMAGE, VIDEO, Encoded, Kind, encoded, holds, media_files
from metrics.files.recordings import is_audio, read_audio
from metrics.files.videos import is_video, read_videos

EXPECTED = (
    "a folder of images, .npz, .npy, .parquet, .tar, .zip, MDS or Arrow files, videos, recordings, or the "
    "name of a data set"
)
PLURAL = {"image": "images", "video": "videos", "audio": "recordings"}
CLIP = 16
"""Frames of a clip if neither the network nor the user fixes them."""
FITTED = "resolution", "channels"
"""Settings by which the user may convert images."""


class Batch(NamedTuple):
    """Some samples, in order."""

    # Any: the type depends on the modality of the extractor
    inputs: Any
    """Images (B, C, H, W), clips (B, T, C, H, W), or recordings."""
    labels: Tensor | None = None


class Labelled(NamedTuple):
    """The images of a source as training data of a network."""

    read: Callable[[], tuple[np.ndarray, np.ndarray]]
    """Function that returns all images and their labels."""
    classes: int


@dataclass(frozen=True)
class Source:
    """Samples that can be read repeatedly."""

    where: str
    modality: str
    fingerprint: str
    """Hash of the content, not of file names."""
    batches: Callable[[Any, int], Iterator[Batch]]
    """(extractor, batch size) -> batches of the samples in order."""
    count: int | None = None
    """Number of samples; None if decoding determines it: windows of recordings, videos of sufficient
    length.
    """
    shape: tuple[int, ...] | None = None
    """(channels, height, width) of images; None for videos and recordings."""
    labelled: Labelled | None = None
    """The images and their labels, for a network that is trained on them."""
    class_names: tuple[str, ...] = ()
    """Class names in the order of labels; empty if classes are only numbered."""
    found: Found | None = None
    """The content: classes, label source, files left out; None for data of other kinds."""
    frames: int | None = None
    """Frames of a clip: the user's choice, or after `settled` that of the network; None if not chosen."""


def open_source(where: str, modality: str, data: DataSpec, frames: int | None = None) -> Source:
    """Open the samples of a path or of a data set's name, for a network of that modality.

    `data` holds the user's settings: resolution, channels, keys. `frames` is the length of clips. Raises
    `UserError` for samples that are missing, broken, empty or of another modality.
    """
    path = Path(where).expanduser()
    if _is_dataset(where):
        found = "image"
    elif not path.exists():
        known = ", ".join(name for name in registry.names("dataset"))
        raise UserError(f"{where}: no such file or folder; expected {EXPECTED} ({known})")
    else:
        found = _modality(path, modality)
    if found != modality:
        raise UserError(
            f"{where} holds {PLURAL[found]}, but the extractor takes {PLURAL[modality]}; "
            f"name one for {PLURAL[found]} with --extractor (see: flowrace list extractors)"
        )
    if modality == "video":
        return _videos(path, frames)
    return _recordings(path) if modality == "audio" else _images(where, path, data)


def _modality(path: Path, wanted: str) -> str:
    """Return the wanted modality if the path has files of it, else that of its files.

    A folder may hold files of several kinds, for example pictures and a preview of them as a video.
    """
    held = {"audio": is_audio, "video": is_video}
    if path.is_dir() and wanted == "image" and holds(path, IMAGE):
        return "image"
    if wanted in held and held[wanted](path):
        return wanted
    return next((kind for kind, holds_it in held.items() if holds_it(path)), "image")


def settled(source: Source, extract: Any) -> Source:
    """Return the source for a network, with the length of clips fixed and part of the fingerprint.

    Raises `UserError` if the user requested a length that differs from the network's.
    """
    if source.modality != "video":
        return source
    if extract.frames and source.frames not in (None, extract.frames):
        raise UserError(
            f"--frames {source.frames}: extractor '{extract.name}' takes clips of {extract.frames} frames; "
            "remove the option"
        )
    frames = extract.frames or source.frames or CLIP
    return replace(source, frames=frames, fingerprint=f"{source.fingerprint} frames {frames}")


def _is_dataset(where: str) -> bool:
    return where.partition(":")[0] in registry.names("dataset") and not Path(where).exists()


def _images(where: str, path: Path, data: DataSpec) -> Source:
    if _is_dataset(where):
        name, _, root = where.partition(":")
        return _dataset(where, data.model_copy(update={"name": name, "root": root}))
    plain = not (data.resolution or data.channels)
    if path.suffix == ".npy" or (path.suffix == ".npz" and plain):
        return _array(where, path, data)
    if path.is_dir() and not any(path.iterdir()):
        raise UserError(f"{where} is an empty folder; expected {EXPECTED}")
    name = packed_kind(path)
    if path.is_dir() and not name:
        name = "parquet" if holds_parquet(path) else "folder"
    if not name:
        raise UserError(f"{where} is a file of an unsupported type; expected {EXPECTED}")
    spec = data.model_copy(update={"name": name, "root": str(path)})
    # The key of one side need not exist on the other.
    if name == "folder" and data.label_key != NONE and not has_table(path):
        spec = spec.model_copy(update={"label_key": ""})
    return _dataset(where, spec)


def _dataset(where: str, spec: DataSpec) -> Source:
    dataset = open_dataset(spec)

    def batches(_: Any, size: int) -> Iterator[Batch]:
        for start in range(0, len(dataset), size):
            pixels, labels = images(dataset, np.arange(start, min(start + size, len(dataset))))
            yield Batch(torch.from_numpy(pixels), torch.from_numpy(labels) if dataset.classes > 1 else None)

    return Source(
        where,
        "image",
        f"{dataset.fingerprint} {dataset.shape}",
        batches,
        len(dataset),
        dataset.shape,
        Labelled(lambda: images(dataset, np.arange(len(dataset))), dataset.classes),
        Capabilities(dataset).class_names,
        found_in(dataset),
    )


def _array(where: str, path: Path, data: DataSpec) -> Source:
    array = open_array(path, data.image_key, data.label_key)
    _check_fitted(array, data)

    def batches(_: Any, size: int) -> Iterator[Batch]:
        start = 0
        for pixels in array_batches(array, size):
            stop = start + len(pixels)
            labels = None if array.labels is None else torch.from_numpy(array.labels[start:stop])
            yield Batch(torch.from_numpy(pixels), labels)
            start = stop

    labels = np.zeros(array.shape[0], np.int64) if array.labels is None else array.labels

    def read() -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(list(array_batches(array, 1000))), labels

    _, height, width = array.image_shape
    about = array.labelled or unlabelled(array.shape[0])
    classes = () if array.labels is None else class_counts(about.names, about.classes, labels)
    return Source(
        where,
        "image",
        array_fingerprint(array),
        batches,
        array.shape[0],
        array.image_shape,
        Labelled(read, int(labels.max(initial=0)) + 1),
        about.names,
        Found(
            array.shape[0],
            classes,
            array.label_source,
            about.problem,
            files=1,
            shape=array.image_shape,
            stored=stored_images([(width, height)]),
        ),
    )


def _check_fitted(array: ArrayImages, data: DataSpec) -> None:
    """Raise `UserError` if an array, which is read unchanged, does not have the requested size."""
    channels, height, width = array.image_shape
    side = data.resolution
    if (data.channels or channels, side or height, side or width) != array.image_shape:
        requested = ", ".join(
            f"data.{name} = {getattr(data, name)}" for name in FITTED if getattr(data, name)
        )
        raise UserError(
            f"{requested}: {array.file} holds images of {width}x{height} pixels and {channels} channels, and "
            "npy is read unchanged; save it as npz, whose images are resized"
        )


def _videos(path: Path, frames: int | None) -> Source:
    def batches(extract: Any, size: int) -> Iterator[Batch]:
        length = extract.frames or frames or CLIP
        for clips in read_videos(path, length, batch=max(1, size // length)):
            yield Batch(clips)

    fingerprint, found = _described_media(path, VIDEO)
    return Source(str(path), "video", fingerprint, batches, found=found, frames=frames)


def _recordings(path: Path) -> Source:
    def batches(extract: Any, _: int) -> Iterator[Batch]:
        for recording in read_audio(path, extract.rate):
            yield Batch([recording])

    fingerprint, found = _described_media(path, AUDIO)
    return Source(str(path), "audio", fingerprint, batches, found=found)


def _described_media(path: Path, kind: Kind) -> tuple[str, Found | None]:
    """Return 16 hex digits over the encoded bytes of every file, in order, and what the files hold.

    Their labels are read by no metric, and their sizes and rates are those of their headers.
    """
    if path.suffix in (".npz", ".npy"):
        return sha256_of(path)[:16], None
    total, headers = hashlib.sha256(), []
    for file in encoded(path, kind):
        content = file.content
        total.update(hashlib.sha256(content).digest())
        headers.append(header_of(Encoded(file.name, content), kind))
    files, skipped = media_files(path, kind)
    source = f"none: labels of {kind.plural} are not read"
    found = Found(len(headers), (), source, skipped=skipped, files=len(files), stored=_stored(headers))
    return total.hexdigest()[:16], found


def _stored(headers: list[Header]) -> Stored:
    sizes = [header.size for header in headers if header.size]
    return Stored(
        sizes_of(sizes),
        spread(header.frame_rate for header in headers),
        spread(header.sampling_rate for header in headers),
        sum(header.turned for header in headers),
        len(sizes),
    )
