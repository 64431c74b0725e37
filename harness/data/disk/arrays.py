"""Images in array files, npz archives or IDX files like those of MNIST, kept in memory as uint8."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
from PIL import Image

from harness.config.spec import DataSpec
from harness.data.dataset import Sample
from harness.data.disk.pixels import fit, flatten
from harness.data.disk.survey import data_path
from harness.errors import UserError, unknown

KEYS = (("train_x", "train_y"), ("x_train", "y_train"), ("images", "labels"), ("arr_0", "arr_1"))
NPZ = "a .npz file, or a folder with one: uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W), labels (N,)"
IDX = "a folder with train-images-idx3-ubyte and train-labels-idx1-ubyte (or .gz), or the image file itself"


class _ArrayImages:
    """Images uint8 (N, H, W) or (N, H, W, C), labels int64 (N,)."""

    modality = "image"
    reads = ("root", "resolution", "channels")

    def __init__(self, spec: DataSpec, images: np.ndarray, labels: np.ndarray | None, where: str) -> None:
        self._images = checked_images(images, where)
        self._labels, self.classes = checked_labels(labels, len(images), where)
        height, width = self._images.shape[1:3]
        stored = 1 if self._images.ndim == 3 or self._images.shape[3] == 1 else 3
        side = spec.resolution
        self.shape = (spec.channels or stored, side or height, side or width)
        total = hashlib.sha256(f"{self._images.shape}".encode())
        total.update(np.ascontiguousarray(self._images).data)
        total.update(self._labels.tobytes())
        self.fingerprint = total.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._labels)

    def sample(self, index: int) -> Sample:
        image = flatten(Image.fromarray(self._images[index]))
        return Sample(fit(image, self.shape), self.label(index))

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def key(self, index: int) -> bytes:
        return self._images[index].tobytes()


class NpzImages(_ArrayImages):
    """Images and labels of a .npz archive, by `data.image_key` and `data.label_key` or by the usual names."""

    reads = (*_ArrayImages.reads, "image_key", "label_key")

    def __init__(self, spec: DataSpec) -> None:
        path = _archive(data_path(spec, NPZ))
        try:
            with np.load(path, allow_pickle=False) as archive:
                image_key, label_key = _keys(spec, list(archive.files), path)
                images = archive[image_key]
                labels = archive[label_key] if label_key else None
        except (
            ValueError,
            OSError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
            TypeError,
            AttributeError,
            RuntimeError,
            TokenError,
        ) as error:
            raise UserError(
                f"{path} is not a readable .npz file of plain arrays: {error}; expected {NPZ}"
            ) from error
        super().__init__(spec, images, labels, f"{path}: '{image_key}'")


class IdxImages(_ArrayImages):
    """Images and labels in MNIST's layout: IDX files of unsigned bytes, plain or gzipped.

    Source: http://yann.lecun.com/exdb/mnist
    """

    def __init__(self, spec: DataSpec) -> None:
        path = data_path(spec, IDX)
        file = _idx_file(path, "train-images", 3) if path.is_dir() else path
        stem = file.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
        if "images" not in file.name:
            raise UserError(
                f"{file}: the name does not contain 'images', so the labels cannot be found; expected {IDX}"
            )
        labels = [p for p in (file.with_name(stem), file.with_name(f"{stem}.gz")) if p.is_file()]
        if not labels:
            raise UserError(f"{file} has no labels: expected {stem} or {stem}.gz in the same folder")
        super().__init__(spec, read_idx(file, 3), read_idx(labels[0], 1), str(file))


def checked_images(images: np.ndarray, where: str) -> np.ndarray:
    """Return images as (N, H, W) or (N, H, W, C). Raises `UserError` for another type or shape."""
    if images.dtype != np.uint8:
        raise UserError(
            f"{where} has images of type {images.dtype}, expected uint8 from 0 to 255; convert them"
        )
    if images.ndim == 3 and images.size:
        return images
    channels_last = images.ndim == 4 and images.shape[3] in (1, 3, 4)
    channels_first = images.ndim == 4 and images.shape[1] in (1, 3)
    if not images.size or channels_last == channels_first:
        ambiguous = channels_last and images.size
        reason = "fits both (N, H, W, C) and (N, C, H, W)" if ambiguous else "is not that of images"
        raise UserError(f"{where} has shape {images.shape}, which {reason}; expected {NPZ}")
    images = images if channels_last else images.transpose(0, 2, 3, 1)
    return images[..., 0] if images.shape[3] == 1 else images


class Labels(NamedTuple):
    labels: np.ndarray
    """int64 (n,)."""
    classes: int


def checked_labels(labels: np.ndarray | None, n: int, where: str, *, below: int = 0) -> Labels:
    """Return labels and the number of classes, the largest label plus one. Without labels, all are 0.

    Raises `UserError`, naming the row, for labels that are not integers or not in 0 .. below - 1. The default
    of `below` is `most_classes(n)`.
    """
    if labels is None:
        return Labels(np.zeros(n, dtype=np.int64), 1)
    if labels.shape not in ((n,), (n, 1)):
        raise UserError(f"{where}: labels have shape {labels.shape}, expected ({n},), one per image")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{where}: labels are of type {labels.dtype}, expected integers from 0")
    labels = labels.reshape(n)
    below = below or most_classes(n)
    for row in np.flatnonzero((labels < 0) | (labels >= below))[:1]:
        raise UserError(
            f"{where}: label {labels[row]} of row {row} is out of range, expected 0 to {below - 1}"
        )
    return Labels(labels.astype(np.int64), int(labels.max(initial=0)) + 1)


def most_classes(n: int) -> int:
    """Return the largest plausible number of classes: one per sample, or 1000 for a small excerpt."""
    return max(n, 1000)


def read_idx(path: Path, dims: int) -> np.ndarray:
    """Return the uint8 array of an IDX file.

    The layout is two zeros, type 8, the number of dimensions, each size as big-endian int32, and the bytes.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if content[:4] != bytes((0, 0, 8, dims)):
        raise UserError(
            f"{path} is not an IDX file of unsigned bytes in {dims} dimensions: it begins with "
            f"{content[:4].hex()}; "
            f"expected {IDX}"
        )
    start = 4 + 4 * dims
    sizes = np.frombuffer(content[4:start].ljust(4 * dims, b"\0"), dtype=">u4").tolist()
    expected = start + int(np.prod(sizes, dtype=object))
    if len(content) != expected:
        raise UserError(
            f"{path} has {len(content)} bytes, but its header {sizes} requires {expected}; the file is "
            "damaged, "
            "replace it"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(sizes)


def _archive(path: Path) -> Path:
    if not path.is_dir():
        return path
    archives = sorted(path.glob("*.npz"))
    if len(archives) != 1:
        raise UserError(
            f"data.root = {path} holds {len(archives)} .npz files, expected one; set data.root to one file"
        )
    return archives[0]


def _keys(spec: DataSpec, names: list[str], path: Path) -> tuple[str, str]:
    for field, key in (("image_key", spec.image_key), ("label_key", spec.label_key)):
        if key and key not in names:
            raise unknown(f"data.{field} in {path}", key, names)
    usual = next((pair for pair in KEYS if pair[0] == (spec.image_key or pair[0]) and pair[0] in names), None)
    if not spec.image_key and usual is None:
        raise UserError(f"{path} has arrays {', '.join(names)}; set data.image_key and data.label_key")
    image = spec.image_key or (usual[0] if usual else "")
    return image, spec.label_key or (usual[1] if usual and usual[1] in names else "")


def _idx_file(folder: Path, stem: str, dims: int) -> Path:
    names = [f"{stem}{dash}idx{dims}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"data.root = {folder} has no {names[0]} and no {names[1]}; expected {IDX}")
