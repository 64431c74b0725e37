"""The data set that reads a path of images."""

from __future__ import annotations

from pathlib import Path


def image_kind(path: Path) -> str:
    """Return the registered name of the data set that reads the images of a file or folder."""
    if path.suffix in (".npz", ".parquet"):
        return path.suffix[1:]
    return "parquet" if next(path.rglob("*.parquet"), None) else "folder"
