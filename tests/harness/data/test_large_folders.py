"""Folders of many files are listed and surveyed in bounded memory, with progress."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from harness.data.disk.survey import Encoded, survey
from metrics.files import listing as files
from metrics.files.media import IMAGE, listing
from tests.support.allocated import traced

IN_FOLDER = 1000
LISTED, SURVEYED = 250, 700
"""Bytes of memory per file that a listing and a survey may take at their peak."""
CHUNK = 4_000_000
"""Bytes that the files that are read at one time may take."""


def many_files(root: Path, count: int) -> Path:
    """Create empty files with ImageNet's names, a thousand in each class folder."""
    for number in range(0, count, IN_FOLDER):
        folder = root / f"n{number:08d}"
        folder.mkdir()
        descriptor = os.open(folder, os.O_RDONLY)
        for file in range(min(IN_FOLDER, count - number)):
            name = f"{folder.name}_{file:05d}.JPEG"
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
        os.close(descriptor)
    return root


def hashed(item: Encoded) -> tuple[str, int]:
    return hashlib.sha256(item.where.encode()).hexdigest(), 8


def check_listing(root: Path, count: int, tries: int = 2) -> list[str]:
    """Return the names in a folder.

    Raises if a listing misses a file, reports no progress, or takes too much memory.
    """
    names: list[str] = []
    progress: list[int] = []

    def list_names(_: int) -> None:
        progress.clear()
        names[:] = listing(root, IMAGE, advance=progress.append).names

    listed = traced(list_names, tries)
    assert len(names) == len(set(names)) == count
    assert sum(progress) == count // files.STEP * files.STEP
    assert listed < LISTED * count
    return names


def check_survey(root: Path, names: list[str]) -> None:
    """Raise if a survey misses a file, takes too much memory, or reads a file twice."""

    def read(number: int) -> list[list[object]]:
        return survey(root, names, lambda name: [Encoded(bytes, name)], f"many-{number}", hashed)

    assert traced(read) < SURVEYED * len(names) + CHUNK
    found = survey(root, names, lambda _: pytest.fail("the cache is not used"), "many-0", hashed)
    assert found[-1] == list(hashed(Encoded(bytes, names[-1]))) and len(found) == len(names)


@pytest.mark.slow
def test_folder_is_listed_and_surveyed_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "STEP", IN_FOLDER)
    (tmp_path / "data").mkdir()
    root = many_files(tmp_path / "data", 6000)
    check_survey(root, check_listing(root, 6000))


@pytest.mark.slow
def test_folder_of_a_million_files_is_listed_in_bounded_memory(tmp_path: Path) -> None:
    check_listing(many_files(tmp_path, 1_000_000), 1_000_000, tries=1)
