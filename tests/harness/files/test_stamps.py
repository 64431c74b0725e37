"""Stamps of files: replaced files have another stamp, whatever their size and modification time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.files import stamps
from harness.files.stamps import is_doubtful, stamp_of, stored, tree_stamp


def replaced(file: Path, content: bytes) -> None:
    """Replace a file by one of equal size and modification time."""
    before = file.stat()
    assert len(content) == before.st_size
    other = file.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_stamp_changes_when_a_file_is_replaced_by_one_of_equal_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"old")
    before = stamp_of(file)
    replaced(file, b"new")
    assert stamp_of(file)[:2] == before[:2] and stamp_of(file) != before


def test_stamp_of_a_link_is_that_of_its_target(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, ns=(1, 1))
    link, hard = tmp_path / "link", tmp_path / "hard"
    link.symlink_to(tmp_path / "a")
    hard.hardlink_to(tmp_path / "a")
    assert stamp_of(link) == stamp_of(tmp_path / "a") == stamp_of(hard)
    link.unlink()
    link.symlink_to(tmp_path / "b")
    assert stamp_of(link)[:2] == stamp_of(hard)[:2] and stamp_of(link) != stamp_of(hard)


def test_tree_stamp_changes_with_any_file_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "er" / "a"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"old")
    (tmp_path / "loop").symlink_to(tmp_path)
    before = tree_stamp(tmp_path)
    assert before is not None and tree_stamp(tmp_path) == before
    replaced(file, b"new")
    changed = tree_stamp(tmp_path)
    assert changed is not None and changed[0] != before[0]
    file.rename(file.with_name("b"))
    renamed = tree_stamp(tmp_path)
    assert renamed is not None and renamed[0] != changed[0]
    assert tree_stamp(tmp_path / "missing") is None


def test_tree_stamp_sees_a_linked_file_that_is_exchanged(tmp_path: Path) -> None:
    root, outside = tmp_path / "data", tmp_path / "outside"
    root.mkdir()
    outside.write_bytes(b"old")
    (root / "link").symlink_to(outside)
    before = tree_stamp(root)
    replaced(outside, b"new")
    after = tree_stamp(root)
    assert before is not None and after is not None and after[0] != before[0]
    outside.unlink()
    assert tree_stamp(root) not in (None, after)


@pytest.mark.parametrize(
    ("age_ns", "doubtful"), [(0, True), (stamps.TICK_NS - 1, True), (stamps.TICK_NS, False), (-5, True)]
)
def test_stamp_taken_within_a_tick_of_the_change_is_not_relied_on(age_ns: int, doubtful: bool) -> None:
    stamp = [3, 1, 2, 10**18]
    assert is_doubtful(stamp[-1], stamp[-1] + age_ns) is doubtful
    assert (stored(stamp, stamp[-1] + age_ns) != stamp) is doubtful
