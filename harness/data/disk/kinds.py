"""The data set that reads a path of images."""

from __future__ import annotations

from pathlib import Path

from harness.data.disk.media import holds_parquet
from harness.errors import UserError
from metrics.files.media import IMAGE

BY_SUFFIX = {".npz": "npz", ".parquet": "parquet", ".tar": "webdataset", ".zip": "zip"}
MARKS = (
    ("*.arrow", "arrow"), ("*/*.arrow", "arrow"), ("*.mds", "mds"), ("*/*.mds", "mds"),
    ("*.tar", "webdataset"), ("*/*.tar", "webdataset"),
)  # fmt: skip
"""Patterns of files that only one kind of folder has."""


def packed_kind(path: Path) -> str:
    """Return the registered name of the data set that reads a container of images, "" for other paths.

    Raises `UserError` for a folder with containers and images, of which either could be meant.
    """
    if not path.is_dir():
        return BY_SUFFIX.get(path.suffix.lower(), "")
    for pattern, kind in MARKS:
        if container := next(path.glob(pattern), None):
            files = (file for level in ("*", "*/*") for file in path.glob(level))
            if image := next((file for file in files if file.suffix.lower() in IMAGE.suffixes), None):
                raise UserError(
                    f"{path} holds containers ({container.relative_to(path)}) and images "
                    f"({image.relative_to(path)}), so what to read is ambiguous; move one kind elsewhere"
                )
            return kind
    return ""


def image_kind(path: Path) -> str:
    """Return the registered name of the data set that reads the images of a file or folder."""
    if kind := packed_kind(path):
        return kind
    return "parquet" if holds_parquet(path) else "folder"
