"""Latents in webdataset's tar files: KEY.npy with KEY.cls or a label in KEY.json, read in place."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.disk.labels import NONE
from harness.data.disk.media import Clips
from harness.data.disk.npy import HEADER, LARGEST, Form, checked_latents, parse_npy
from harness.data.disk.packed import Packed
from harness.data.disk.webdataset import TarImages, members, tar_files
from harness.errors import UserError
from harness.latents.layouts.source import LatentSource, identity_of
from metrics.files.media import IMAGE

ENDING = "npy"
LOOKED_AT = 20
"""Number of members that are looked at to recognise latents."""


def is_webdataset(root: Path) -> bool:
    """Return whether the first tar file of a path holds .npy members and no images."""
    if not (root.suffix.lower() == ".tar" if root.is_file() else next(root.glob("**/*.tar"), None)):
        return False
    try:
        names = [member.name for member in islice(members(tar_files(root)[0][0]), LOOKED_AT)]
    except UserError:
        return False
    endings = {Path(name).suffix.lower() for name in names}
    return f".{ENDING}" in endings and not endings & IMAGE.suffixes


def open_webdataset(root: Path, *, labelled: bool) -> LatentSource:
    """Open the members KEY.npy of a tar file, or of a folder of them."""
    key = "" if labelled else NONE
    held = TarImages.open(DataSpec(name="webdataset", root=str(root), image_key=ENDING, label_key=key), root)
    records = _Members(held)
    base = root if root.is_dir() else root.parent
    names = [
        held.name(file, row).removeprefix(f"{base}/")
        for file, count in enumerate(held.counts)
        for row in range(count)
    ]
    sizes = ((str(file.relative_to(base)), file.stat().st_size) for file in held.files)
    source = held.label_source if labelled else "none: --no-labels"
    return LatentSource(
        "webdataset", root, records, names, held.labels, source, "std", len(held.files), identity_of(sizes),
        held.skipped,
    )  # fmt: skip


def webdataset_files(root: Path) -> list[Path]:
    """Return the tar files of a root that are read."""
    return tar_files(root)[0]


class _Members:
    """One record per member."""

    copies = 1

    def __init__(self, held: Packed) -> None:
        self._held, self._place = held, Clips(held.counts)
        if not sum(held.counts):
            raise UserError(f"{held.files[0]} holds no .{ENDING} members; expected one for each sample")
        first = self._array(0, None)
        self._form = Form(first.shape, first.dtype)
        self.shape, self.dtype = self._form

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.stack([self._array(index, self._form) for index in range(start, stop)])[:, None]

    def _array(self, index: int, form: Form | None) -> np.ndarray:
        place = self._place[index]
        where, content = self._held.name(*place), self._held.read(*place)
        if len(content) > (LARGEST if form is None else form.nbytes + HEADER):
            raise UserError(f"{where} has {len(content):,} bytes, more than the other latents; replace it")
        return checked_latents(parse_npy(content, where), form, where, self._held.name(*self._place[0]))
