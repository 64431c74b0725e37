"""The data set that reads a path of images."""

from __future__ import annotations

from pathlib import Path

from harness.data.disk.media import holds_parquet


def image_kind(path: Path) -> str:
    """Return the registered name of the data set that reads the images of a file or folder."""
    if path.suffix in (".npz", ".parquet"):
        return path.suffix[1:]
    return "parquet" if holds_parquet(path) else "folder"
