"""REPA's layout: `images/` and `vae-sd/`, each with `dataset.json`, as folders or as EDM2's zip files.

A file `vae-sd/00000/img-mean-std-00000000.npy` holds mean and standard deviation, (8, 32, 32) for 256x256
pixels. Images and latents correspond in the order of their names. Source: sihyun-yu/REPA dataset.py,
preprocessing/encoders.py (`torch.cat([d.mean, d.std], dim=1)`).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from harness.data.disk.labels import Labels, unlabelled
from harness.data.disk.npy import (
    DAMAGED_ZIP,
    HEADER,
    LARGEST,
    Form,
    checked_latents,
    damaged,
    parse_npy,
    read_file,
)
from harness.data.disk.packed import check_names
from harness.data.disk.tables import EDM, Table, edm_table, in_table_order, labels_of
from harness.data.disk.zipped import TABLE_BYTES, content_begin, read_member
from harness.errors import UserError
from harness.files.files import decode_text, read_text
from harness.latents.layouts.source import LatentSource, files_of, identity_of
from metrics.files.listing import Skipped, is_clutter, list_folder, walk
from metrics.value import MetricError

IMAGES = "images"
LOOKED_AT = 5000
"""Number of files next to a dataset.json that are looked at to recognise latents."""
FEATURES = re.compile(r"vae-[\w.-]+")
EXPECTED = (
    "REPA's layout: images/ and vae-sd/ (or images.zip and vae-sd.zip) with .npy files and dataset.json"
)


@dataclass(frozen=True)
class _Container:
    """The .npy files of a folder or of a zip file, sorted by name."""

    root: Path
    names: list[str]
    sizes: list[int]
    read: Callable[[str, int], bytes]
    """Returns the content of a file of at most a number of bytes."""
    table: Table | None
    skipped: tuple[Skipped, ...]
    begin: Callable[[str], int] | None = None
    """Returns the position of a member in the zip file."""
    uncompressed: bool = True

    def where(self, name: str) -> str:
        return str(self.root / name)


def is_repa(root: Path) -> bool:
    """Return whether a path looks like REPA's layout, or holds its latents."""
    if root.is_file():
        return root.suffix.lower() == ".zip" and (_is_named(root) or _zip_holds_arrays(root))
    if _features(root) or _is_named(root):
        return True
    return (root / EDM).is_file() and any(_is_array(name) for name in islice(walk(root), LOOKED_AT))


def _is_named(path: Path) -> bool:
    """Return whether a path has the name of a set of latents, for example vae-sd.zip."""
    return bool(FEATURES.fullmatch(path.stem if path.is_file() else path.name))


def _zip_holds_arrays(path: Path) -> bool:
    """Return whether a zip file holds .npy files, or is damaged, which opening it reports."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(map(_is_array, archive.namelist()))
    except DAMAGED_ZIP:
        return True


def _is_array(name: str) -> bool:
    return name.lower().endswith(".npy")


def open_repa(root: Path, *, labelled: bool) -> LatentSource:
    """Open the latents below a root. Raises `UserError` for another layout."""
    features, images = _parts(root)
    held = _in_zip(features) if features.is_file() else _in_folder(features)
    if not held.names:
        raise UserError(f"{features} holds no .npy files; expected {EXPECTED}")
    labels, source = _labels(held, labelled)
    records = _NpyRecords(held)
    return LatentSource(
        "repa", root, records, held.names, labels, source, "std", len(held.names),
        identity_of(zip(held.names, held.sizes, strict=True)), held.skipped, images=images,
    )  # fmt: skip


class _NpyRecords:
    """One record per .npy file."""

    copies = 1

    def __init__(self, held: _Container) -> None:
        self._held = held
        first = self._array(held.names[0], LARGEST, None)
        self._form = Form(first.shape, first.dtype)
        self.shape, self.dtype = self._form
        self.paths, self.stored = [held.root] if held.begin else [], self.dtype.name
        self.uncompressed = held.uncompressed

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Return file and first byte of each record, int64 (stop - start, 1, 2)."""
        return np.array([[[0, self._begin(name)]] for name in self._held.names[start:stop]], dtype=np.int64)

    def _begin(self, name: str) -> int:
        assert self._held.begin is not None
        content = self._held.read(name, self._form.nbytes + HEADER)
        array = parse_npy(content, self._held.where(name))
        if not array.flags.c_contiguous or array.dtype != self._form.dtype:
            raise UserError(
                f"{self._held.where(name)} is in another order of values or bytes; leave out --link"
            )
        return self._held.begin(name) + len(content) - array.nbytes

    def read(self, start: int, stop: int) -> np.ndarray:
        limit = self._form.nbytes + HEADER
        names = self._held.names[start:stop]
        return np.stack([self._array(name, limit, self._form) for name in names])[:, None]

    def _array(self, name: str, limit: int, form: Form | None) -> np.ndarray:
        where = self._held.where(name)
        array = parse_npy(self._held.read(name, limit), where)
        return checked_latents(array, form, where, self._held.where(self._held.names[0]))


def repa_files(root: Path) -> Iterator[Path]:
    """Yield the files that the latents of a root are read from, and those of its images."""
    features, images = _parts(root)
    if features.is_file():
        yield features
    else:
        yield from (features / name for name in walk(features) if _is_array(name) or name == EDM)
    if images is not None:
        yield from files_of(images)


def _features(root: Path) -> list[Path]:
    """Return the folders or zip files of latents in a root, `vae-sd` or another autoencoder's."""
    found = [path for path in root.iterdir() if FEATURES.fullmatch(path.name)]
    return sorted(path for path in found if path.is_dir() or path.suffix.lower() == ".zip")


def _parts(root: Path) -> tuple[Path, Path | None]:
    """Return the location of the latents, and that of the images if it is in the root."""
    features = [root] if root.is_file() else _features(root)
    if len(features) > 1:
        names = ", ".join(path.name for path in features)
        raise UserError(f"{root} holds several sets of latents ({names}); give one of them, and --images")
    if not features:
        return root, None
    images = next((p for p in (root / IMAGES, root / f"{IMAGES}.zip") if p.exists()), None)
    return features[0], images if root.is_dir() else None


def _labels(held: _Container, labelled: bool) -> tuple[Labels, str]:
    n = len(held.names)
    if not labelled:
        return unlabelled(n), "none: --no-labels"
    if held.table is None:
        raise UserError(f"{held.root} has no {EDM} with labels; add it, or import with --no-labels")
    if not held.table.labels:
        return unlabelled(n), held.table.source
    return labels_of(held.root, held.table, held.names, "latents"), held.table.source


def _in_folder(root: Path) -> _Container:
    try:
        found = list_folder(root, {".npy"}, ignored=(EDM,))
    except MetricError as error:
        raise UserError(str(error)) from error

    def read(name: str, limit: int) -> bytes:
        return read_file(root / name, limit)

    file = root / EDM
    table = edm_table(file, read_text(file, "JSON")) if file.is_file() else None
    names = in_table_order(table, found.names) if table else found.names
    return _Container(root, names, [_size(root / name) for name in names], read, table, found.skipped)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; replace or remove it") from error


def _in_zip(path: Path) -> _Container:
    """Return the .npy members of a zip file. Raises `UserError` for names that leave it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    except DAMAGED_ZIP as error:
        raise damaged(str(path), "a zip file", error) from error
    check_names(names, path)
    arrays = filter(_is_array, names)
    kept = sorted(name for name in arrays if not any(map(is_clutter, name.split("/"))))

    def read(name: str, limit: int) -> bytes:
        return read_member(path, entries[name], limit)

    def begin(name: str) -> int:
        if entries[name].compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path}: {name} is compressed, so it cannot stay where it is; leave out --link")
        return content_begin(path, entries[name])

    table = None
    if EDM in entries:
        table = edm_table(path / EDM, decode_text(path / EDM, read(EDM, TABLE_BYTES), "JSON"))
    others = sorted(set(names) - set(kept) - {EDM})
    skipped = (Skipped("other files", len(others), others[0]),) if others else ()
    sizes = [entries[name].file_size for name in kept]
    plain = all(entries[name].compress_type == zipfile.ZIP_STORED for name in kept)
    return _Container(path, kept, sizes, read, table, skipped, begin, plain)
