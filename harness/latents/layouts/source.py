"""Interface of the readers of layouts: records in their order, their content, and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from harness.data.disk.caption_features import CaptionFeatures
from harness.data.disk.labels import Labels
from metrics.files.listing import Skipped, walk

Holds = Literal["std", "logvar", "sample"]
"""Content of a record: mean and standard deviation, mean and log-variance, or one draw."""


class Records(Protocol):
    """The arrays of a layout."""

    shape: tuple[int, ...]
    """(channels, height, width) of a record: twice the latent channels if it holds moments."""
    dtype: np.dtype
    copies: int
    """2 if there is a record of each mirrored image."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return records (stop - start, copies, *shape). Raises `UserError` naming a damaged one."""
        ...


@dataclass(frozen=True)
class LatentSource:
    """Latents that other code has stored."""

    kind: str
    """Name of the layout."""
    root: Path
    records: Records
    names: Sequence[str]
    """A name for each sample that does not depend on the location."""
    labels: Labels
    label_source: str
    holds: Holds
    files: int
    identity: str
    """Hash over the names and sizes of all files."""
    skipped: tuple[Skipped, ...] = ()
    scale: float | None = None
    """The scale that the authors' training code applies, if it does not come from a codec."""
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and standard deviation of each channel, from a file next to the latents."""
    images: Path | None = None
    """The images that were encoded, if they are stored with the latents."""
    captions: CaptionFeatures | None = None
    """The states of captions, if the source has them with those of the empty one."""
    notes: tuple[str, ...] = field(default=())
    """Sentences on what else the source holds."""

    def __len__(self) -> int:
        return len(self.names)


def files_of(path: Path) -> Iterator[Path]:
    """Yield a file, or the files below a folder, except hidden ones and those left by programs."""
    if path.is_dir():
        yield from (path / name for name in walk(path))
    else:
        yield path


def identity_of(files: Iterable[tuple[str, int]]) -> str:
    """Return 16 hex digits of a sha256 over names and sizes of files."""
    total = hashlib.sha256()
    for name, size in files:
        total.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    return total.hexdigest()[:16]
