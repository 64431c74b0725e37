"""Promise 7: files that are exchanged for others are noticed, whatever their size and modification time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.config.data_spec import DataSpec
from harness.data.open import open_dataset
from harness.errors import UserError
from harness.files import stamps
from tests.harness.data.pictures import folder_of, pixels, png


@pytest.fixture(autouse=True)
def _rely_on_fresh_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust stamps of files written an instant ago, so that only their fields can show a change."""
    monkeypatch.setattr(stamps, "TICK_NS", 0)


def swapped(file: Path, content: bytes) -> None:
    """Exchange the content of a file for other content, padded to its size, and restore its time."""
    before = file.stat()
    other = file.with_name(f".{file.name}.new")
    other.write_bytes(content.ljust(before.st_size, b"\0"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, file)
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def npz_bytes(folder: Path, **arrays: Any) -> bytes:
    np.savez(folder / "made.npz", **arrays)
    return (folder / "made.npz").read_bytes()


def test_swapped_array_file_has_another_fingerprint(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    labels = np.arange(8) % 2
    file = root / "a.npz"
    file.write_bytes(npz_bytes(tmp_path, images=pixels(), labels=labels))
    for spec in (DataSpec(name="npz", root=str(file)), DataSpec(name="npz", root=str(root))):
        file.write_bytes(npz_bytes(tmp_path, images=pixels(), labels=labels))
        first = open_dataset(spec)
        assert open_dataset(spec) is first
        swapped(file, npz_bytes(tmp_path, images=255 - pixels(), labels=labels))
        assert open_dataset(spec).fingerprint != first.fingerprint
        with pytest.raises(UserError, match="holds other data than this spec was planned with"):
            open_dataset(spec.model_copy(update={"fingerprint": first.fingerprint}))


@pytest.mark.parametrize("link", ["none", "symbolic", "hard"])
def test_swapped_image_of_a_folder_has_another_fingerprint(tmp_path: Path, link: str) -> None:
    root = folder_of(tmp_path / "data", pixels())
    image = root / "class1" / "003.png"
    # Room for any other image: PNG readers ignore bytes after the end.
    image.write_bytes(png(pixels()[3]).ljust(2000, b"\0"))
    if link != "none":
        outside = tmp_path / "outside.png"
        image.rename(outside)
        image.symlink_to(outside) if link == "symbolic" else image.hardlink_to(outside)
    spec = DataSpec(name="folder", root=str(root))
    first = open_dataset(spec)
    swapped(tmp_path / "outside.png" if link == "symbolic" else image, png(255 - pixels()[3]))
    assert open_dataset(spec).fingerprint != first.fingerprint
