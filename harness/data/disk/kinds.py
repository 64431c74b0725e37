"""The data set that reads a path of images."""

from __future__ import annotations

from pathlib import Path

from harness.data.disk.media import holds_parquet

BY_SUFFIX = {".npz": "npz", ".parquet": "parquet", ".tar": "webdataset", ".zip": "zip"}
MARKS = (
    ("*.arrow", "arrow"), ("*/*.arrow", "arrow"), ("*.mds", "mds"), ("*/*.mds", "mds"),
    ("*.tar", "webdataset"), ("*/*.tar", "webdataset"),
)  # fmt: skip
"""Patterns of files that only one kind of folder has."""


def packed_kind(path: Path) -> str:
    """Return the registered name of the data set that reads a container of images, "" for other paths."""
    if not path.is_dir():
        return BY_SUFFIX.get(path.suffix.lower(), "")
    return next((kind for pattern, kind in MARKS if next(path.glob(pattern), None)), "")


def image_kind(path: Path) -> str:
    """Return the registered name of the data set that reads the images of a file or folder."""
    if kind := packed_kind(path):
        return kind
    return "parquet" if holds_parquet(path) else "folder"
