"""MAR's cache: an .npz per image in class folders, with `moments` and `moments_flip`.

Both hold mean and log-variance, (32, 16, 16) for KL-16 at 256x256 pixels. Training scales a draw by 0.2325.
Source: LTH14/mar engine_mar.py (`cache_latents`, `train_one_epoch`), util/loader.py.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.disk.folder import list_files
from harness.data.disk.labels import NONE, Labels
from harness.data.disk.npy import DAMAGED_ZIP, HEADER, LARGEST, Form, checked_latents, read_npz
from harness.data.disk.tables import READERS
from harness.errors import UserError
from harness.latents.layouts.source import LatentSource, identity_of
from metrics.files.listing import walk
from metrics.files.media import Kind

SCALE = 0.2325
MOMENTS, FLIPPED = "moments", "moments_flip"
CACHED = Kind("latents", "cached latents", frozenset({".npz"}), frozenset(), "")


def is_mar(root: Path) -> bool:
    """Return whether the first .npz file of a folder holds moments."""
    first = next((name for name in walk(root) if name.endswith(".npz")), "") if root.is_dir() else ""
    try:
        with zipfile.ZipFile(root / first) as archive:
            return f"{MOMENTS}.npy" in archive.namelist()
    except DAMAGED_ZIP:
        return False


def open_mar(root: Path, *, labelled: bool) -> LatentSource:
    """Open the .npz files of a folder, labelled by their class folders."""
    if not root.is_dir():
        raise UserError(f"SOURCE {root} is a file, expected {CACHED.expected}")
    found = list_files(
        root, CACHED, DataSpec(name="folder", root=str(root), label_key="" if labelled else NONE)
    )
    labels = Labels(np.array(found.labels), found.classes, tuple(found.class_names), found.problem)
    source = found.label_source if labelled else "none: --no-labels"
    sizes = ((name, (root / name).stat().st_size) for name in found.names)
    return LatentSource(
        "mar", root, _Cached(root, found.names), found.names, labels, source, "logvar", len(found.names),
        identity_of(sizes), found.skipped, scale=SCALE,
    )  # fmt: skip


def mar_files(root: Path) -> list[Path]:
    """Return the .npz files below a root, and its tables of labels."""
    read = (*CACHED.suffixes, *READERS)
    return [root / name for name in walk(root) if name.lower().endswith(read)]


class _Cached:
    """One record per .npz file."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self._root, self._names = root, names
        first = self._arrays(names[0], LARGEST, None)
        self.copies, self._form = len(first), Form(first.shape[1:], first.dtype)
        self.shape, self.dtype = self._form

    def read(self, start: int, stop: int) -> np.ndarray:
        limit = self._form.nbytes + HEADER
        records = [self._arrays(name, limit, self._form) for name in self._names[start:stop]]
        for name, record in zip(self._names[start:stop], records, strict=True):
            if len(record) != self.copies:
                raise UserError(
                    f"{self._root / name} has {len(record)} of the arrays '{MOMENTS}' and '{FLIPPED}', but "
                    f"{self._root / self._names[0]} has {self.copies}; replace or remove it"
                )
        return np.stack(records)

    def _arrays(self, name: str, limit: int, form: Form | None) -> np.ndarray:
        """Return (copies, channels, height, width)."""
        path, first = self._root / name, str(self._root / self._names[0])
        found = read_npz(path, (MOMENTS, FLIPPED), limit)
        if MOMENTS not in found:
            raise UserError(f"{path} has no array '{MOMENTS}'; replace or remove it")
        copies = [checked_latents(found[key], form, f"{path}: '{key}'", first) for key in found]
        if len({copy.shape for copy in copies}) > 1 or len({copy.dtype for copy in copies}) > 1:
            raise UserError(f"{path}: '{MOMENTS}' and '{FLIPPED}' differ in shape or type; replace it")
        return np.stack(copies)
