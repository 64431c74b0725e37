"""Latents in MDS shards: a column `latents_256` with the bytes of float16 arrays.

An array is (channels, side / 8, side / 8). The number in the name is the side of the images in pixels. The
shape is not stored, so the channels follow from the number of bytes. Source: SonyResearch/micro_diffusion
datasets/prepare/*/precompute.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.disk.labels import NONE
from harness.data.disk.mds import INDEX, MdsImages, mds_folder, read_index
from harness.data.disk.media import Clips
from harness.data.disk.packed import Packed
from harness.errors import UserError
from harness.latents.layouts.source import LatentSource, identity_of

COLUMN = re.compile(r"latents?_(\d{1,5})")
FACTOR = 8
"""The downscaling of the autoencoders whose latents are stored so."""
STORED = np.dtype("<f2")


def is_mds(root: Path) -> bool:
    """Return whether a folder holds MDS shards with a column of latents."""
    try:
        return root.is_dir() and bool(_columns(root))
    except UserError:
        return False


def open_mds(root: Path, *, labelled: bool, resolution: int | None = None) -> LatentSource:
    """Open the column of latents, that of `resolution` if there are several."""
    if not root.is_dir():
        raise UserError(f"SOURCE {root} is a file, expected a folder with index.json and .mds shards")
    found = _columns(root)
    if len(found) != 1 and resolution not in found:
        names = ", ".join(found.values()) or "no column latents_256"
        raise UserError(f"{root} holds {names}; choose with --resolution, for example --resolution 256")
    side = resolution if resolution in found else next(iter(found))
    spec = DataSpec(name="mds", root=str(root), image_key=found[side], label_key="" if labelled else NONE)
    held = MdsImages.open(spec, root)
    records = _Column(held, side // FACTOR)
    names = [
        f"{file.name} row {row}"
        for file, count in zip(held.files, held.counts, strict=True)
        for row in range(count)
    ]
    source = held.label_source if labelled else "none: --no-labels"
    return LatentSource(
        "mds", root, records, names, held.labels, source, "sample", len(held.files),
        identity_of((file.name, file.stat().st_size) for file in held.files), held.skipped,
        notes=(f"column '{found[side]}'",),
    )  # fmt: skip


def mds_files(root: Path) -> list[Path]:
    """Return the shards of a root that are read, and their index."""
    folder = mds_folder(root)[0]
    return [folder / INDEX, *(shard.file for shard in read_index(folder))]


def _columns(root: Path) -> dict[int, str]:
    """Return the columns of latents by the side of their images."""
    columns = read_index(mds_folder(root)[0])[0].columns
    named = ((COLUMN.fullmatch(name), name) for name, kind in columns.items() if kind == "bytes")
    return {int(match[1]): name for match, name in named if match and int(match[1]) >= FACTOR}


class _Column:
    """One record per row."""

    copies, dtype = 1, STORED

    def __init__(self, held: Packed, side: int) -> None:
        self._held, self._place = held, Clips(held.counts)
        if not sum(held.counts):
            raise UserError(f"{held.files[0]} holds no samples")
        size, plane = len(held.read(*self._place[0])), STORED.itemsize * side * side
        if not size or size % plane:
            raise UserError(
                f"{held.name(*self._place[0])} has {size:,} bytes, which are no float16 latents of "
                f"{side}x{side} places; encode the images again"
            )
        self.shape = (size // plane, side, side)

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.stack([self._array(index) for index in range(start, stop)])[:, None]

    def _array(self, index: int) -> np.ndarray:
        place = self._place[index]
        content = self._held.read(*place)
        if len(content) != (expected := int(np.prod(self.shape)) * STORED.itemsize):
            raise UserError(
                f"{self._held.name(*place)} has {len(content):,} bytes, but the first sample has "
                f"{expected:,}; all latents need one shape"
            )
        return np.frombuffer(content, STORED).reshape(self.shape)
