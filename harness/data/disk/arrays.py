"""Images in array files, npz archives or IDX files like those of MNIST, kept in memory as uint8."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from harness.config.data_spec import DataSpec
from harness.data.dataset import Sample
from harness.data.disk.labels import NONE, Labels, label_column, unlabelled, usable_labels
from harness.data.disk.pixels import fit, flatten
from harness.data.disk.survey import data_path
from harness.data.stored import stored_images
from harness.errors import UserError, unknown
from metrics.files.listing import is_clutter
from metrics.files.numpy_files import BROKEN, check_members, unzipped
from metrics.value import MetricError

KEYS = (("train_x", "train_y"), ("x_train", "y_train"), ("images", "labels"), ("arr_0", "arr_1"))
NPZ = "a .npz file, or a folder with one: uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W), labels (N,)"
IDX = "a folder with train-images-idx3-ubyte and train-labels-idx1-ubyte (or .gz), or the image file itself"


class _ArrayImages:
    """Images uint8 (N, H, W) or (N, H, W, C), labels int64 (N,)."""

    modality = "image"
    reads = ("root", "resolution", "channels")
    files = 1

    def __init__(self, spec: DataSpec, images: np.ndarray, labels: Labels, where: str, source: str) -> None:
        self._images = checked_images(images, where)
        self._labels, self.classes = labels.labels, labels.classes
        self.class_names, self.label_problem, self.label_source = list(labels.names), labels.problem, source
        height, width = self._images.shape[1:3]
        self.stored = stored_images([(width, height)])
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
            check_members(path)
            with np.load(path, allow_pickle=False) as archive:
                image_key, label_key = _keys(spec, list(archive.files), path)
                images = archive[image_key]
                labels = archive[label_key] if label_key else None
        except MetricError as error:
            raise UserError(str(error)) from error
        except BROKEN as error:
            raise UserError(
                f"{path} is not a readable .npz file of plain arrays: {error}; expected {NPZ}"
            ) from error
        where = f"{path}: '{image_key}'"
        found = array_labels(labels, len(images) if images.ndim else 0, where, chosen=bool(spec.label_key))
        source = f"array '{label_key}'" if label_key else "none: no array of labels"
        super().__init__(spec, images, found, where, source)


class IdxImages(_ArrayImages):
    """Images and labels in MNIST's layout: IDX files of unsigned bytes, plain or gzipped.

    Source: http://yann.lecun.com/exdb/mnist
    """

    files = 2

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
        images, found = read_idx(file, 3), read_idx(labels[0], 1)
        checked = array_labels(found, len(images), str(file), chosen=True)
        super().__init__(spec, images, checked, str(file), labels[0].name)


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


def array_labels(labels: np.ndarray | None, n: int, where: str, *, chosen: bool) -> Labels:
    """Return the labels of `n` images; see `usable_labels`."""
    return unlabelled(n) if labels is None else usable_labels(labels, n, where, chosen=chosen)


def label_key(names: list[str], image: str, where: str, key: str) -> str:
    """Return the array of labels next to the array `image`, or "".

    It is `data.label_key`, the array that usually accompanies `image`, or the only one with a usual name.
    """
    pair = dict(KEYS).get(image, "")
    if not key and pair in names:
        return pair
    others = [name for name in names if name != image]
    return label_column(others, f"{where} has arrays {', '.join(names)}", key)


def read_idx(path: Path, dims: int) -> np.ndarray:
    """Return the uint8 array of an IDX file.

    The layout is two zeros, type 8, the number of dimensions, each size as big-endian int32, and the bytes.
    """
    try:
        content = unzipped(path) if path.suffix == ".gz" else path.read_bytes()
    except (MetricError, *BROKEN) as error:
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
    archives = sorted(file for file in path.glob("*.npz") if not is_clutter(file.name))
    if len(archives) != 1:
        raise UserError(
            f"data.root = {path} holds {len(archives)} .npz files, expected one; set data.root to one file"
        )
    return archives[0]


def _keys(spec: DataSpec, names: list[str], path: Path) -> tuple[str, str]:
    for field, key in (("image_key", spec.image_key), ("label_key", spec.label_key)):
        if key not in ("", NONE, *names):
            raise unknown(f"data.{field} in {path}", key, names)
    usual = next((pair for pair in KEYS if pair[0] == (spec.image_key or pair[0]) and pair[0] in names), None)
    if not spec.image_key and usual is None:
        raise UserError(f"{path} has arrays {', '.join(names)}; set data.image_key and data.label_key")
    image = spec.image_key or (usual[0] if usual else "")
    return image, label_key(names, image, str(path), spec.label_key)


def _idx_file(folder: Path, stem: str, dims: int) -> Path:
    names = [f"{stem}{dash}idx{dims}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"data.root = {folder} has no {names[0]} and no {names[1]}; expected {IDX}")
