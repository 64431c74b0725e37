"""Array files: images as one array in npz or npy, in ADM's layout (`arr_0`, NHWC, uint8).

They are read in chunks, because they may exceed memory.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from harness.data.disk.arrays import KEYS, label_key
from harness.data.disk.labels import NONE, Labels, usable_labels
from harness.errors import UserError
from metrics.files.numpy_files import BROKEN, check_members
from metrics.value import MetricError

EXPECTED = "uint8 images (N, H, W, C), as the array arr_0 of an npz in ADM's layout"
CHUNK = 1 << 24
"""Bytes read at a time for the fingerprint."""


class ArrayImages(NamedTuple):
    """An array of images in a file, described by its header."""

    file: Path
    key: str
    """The name of the array in an npz; empty for npy."""
    shape: tuple[int, ...]
    channels_first: bool
    """Channels come before height and width."""
    labelled: Labels | None = None
    """The labels; None if the file has none."""
    label_source: str = "none: no array of labels"

    @property
    def labels(self) -> np.ndarray | None:
        """Return the labels, int64 (N,); None if the file has none, or none that can be used."""
        return None if self.labelled is None or self.labelled.problem else self.labelled.labels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width)."""
        if len(self.shape) == 3:
            _, height, width = self.shape
            return 1, height, width
        _, first, second, third = self.shape
        return (first, second, third) if self.channels_first else (third, first, second)


def open_array(file: Path, image_key: str = "", chosen: str = "") -> ArrayImages:
    """Read the header of a file of images, and the labels of an npz; an npy has neither keys nor labels.

    `image_key` and `chosen` name the arrays of images and of labels; "" for the usual names.

    Raises `UserError`, with file and array, unless images are plain uint8 and labels are integers.
    """
    key = _key(file, image_key)
    where = f"{file}: '{key}'" if key else str(file)
    with _content(file, key) as content:
        shape, fortran, dtype = _header(content, where)
    if dtype.hasobject:
        raise UserError(f"{where} holds pickled objects, which are not loaded; expected {EXPECTED}")
    if dtype != np.uint8:
        raise UserError(f"{where} holds {dtype}, not uint8; save {EXPECTED} in 0..255")
    channels_first = len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3)
    images = len(shape) == 3 or (len(shape) == 4 and (channels_first or shape[3] in (1, 3)))
    if images and fortran:
        raise UserError(f"{where} is in Fortran order; save numpy.ascontiguousarray(array)")
    if not images or 0 in shape:
        hint = "; composite transparent images on a background" if len(shape) == 4 and shape[3] == 4 else ""
        raise UserError(f"{where} has shape {shape}; expected {EXPECTED} with C of 1 or 3{hint}")
    name = _label_key(file, key, chosen)
    if not name:
        return ArrayImages(file, key, shape, channels_first)
    labels = _labels(file, name, shape[0], where, chosen)
    return ArrayImages(file, key, shape, channels_first, labels, f"array '{name}'")


def array_fingerprint(images: ArrayImages) -> str:
    """Return 16 hex digits over shape, bytes and labels.

    Raises `UserError` for a truncated or damaged file.
    """
    total = hashlib.sha256(f"{images.shape} {images.channels_first}".encode())
    with _content(images.file, images.key) as content:
        _header(content, str(images.file))
        left = int(np.prod(images.shape))
        while left:
            chunk = _read(content, min(CHUNK, left), images.file)
            total.update(chunk)
            left -= len(chunk)
    if images.labels is not None:
        total.update(images.labels.tobytes())
    return total.hexdigest()[:16]


def array_batches(images: ArrayImages, size: int) -> Iterator[np.ndarray]:
    """Yield the images in order, uint8 (<= size, C, H, W)."""
    bytes_per_image = int(np.prod(images.shape[1:]))
    with _content(images.file, images.key) as content:
        _header(content, str(images.file))
        for start in range(0, images.shape[0], size):
            count = min(size, images.shape[0] - start)
            pixels = np.frombuffer(_read(content, count * bytes_per_image, images.file), np.uint8)
            pixels = pixels.reshape(count, *images.shape[1:])
            pixels = pixels[:, None] if pixels.ndim == 3 else pixels
            channels_last = len(images.shape) == 4 and not images.channels_first
            yield np.array(pixels.transpose(0, 3, 1, 2) if channels_last else pixels, order="C")


@contextmanager
def _content(file: Path, key: str) -> Iterator[IO[bytes]]:
    """Open the npy stream of an array; raises `UserError` for a file that cannot be read."""
    try:
        if not key:
            with open(file, "rb") as content:
                yield content
            return
        with zipfile.ZipFile(file) as archive, archive.open(f"{key}.npy") as content:
            yield content
    except BROKEN as error:
        raise UserError(f"{file} cannot be read: {error}; expected {EXPECTED}") from error


def _read(content: IO[bytes], size: int, file: Path) -> bytes:
    data = content.read(size)
    if len(data) < size:
        raise UserError(f"{file} is cut short: {size - len(data)} bytes of images are missing")
    return data


def _header(content: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(content)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        return read(content)
    except BROKEN as error:
        raise UserError(f"{where} is not a numpy array: {error}") from error


def _key(file: Path, image_key: str) -> str:
    if file.suffix == ".npy":
        return ""
    names = _names(file)
    usual = [pair[0] for pair in reversed(KEYS) if pair[0] in names]
    key = image_key or (usual[0] if usual else names[0] if len(names) == 1 else "")
    if key not in names:
        raise _no_array(file, image_key or "arr_0", names, "image_key")
    return key


def _label_key(file: Path, key: str, chosen: str) -> str:
    """Return the array of labels of an npz, or ""."""
    names = _names(file) if key else []
    if chosen and key and chosen not in (NONE, *names):
        raise _no_array(file, chosen, names, "label_key")
    return label_key(names, key, str(file), chosen) if names else ""


def _labels(file: Path, name: str, n: int, where: str, chosen: str) -> Labels:
    """Return the labels of an npz."""
    try:
        check_members(file)
        with np.load(file, allow_pickle=False) as archive:
            return usable_labels(archive[name], n, f"{file}: '{name}'", chosen=bool(chosen))
    except (MetricError, *BROKEN) as error:
        raise UserError(f"{file}: labels '{name}' of {where} cannot be read: {error}") from error


def _no_array(file: Path, key: str, names: list[str], field: str) -> UserError:
    return UserError(
        f"{file} has no array '{key}' (it has: {', '.join(names) or 'none'}); choose another with --set "
        f"data.{field}=NAME"
    )


def _names(file: Path) -> list[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except BROKEN as error:
        raise UserError(f"{file} is not a readable npz file: {error}") from error
