"""Files of a folder: one walk for training and evaluation, which reports all that it leaves out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metrics import MetricError
from metrics.files.listing import list_folder
from metrics.files.media import AUDIO, IMAGE, VIDEO, holds, listing, media_files
from metrics.files.parquet_files import parquet_files


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


CLUTTER = (
    ".ipynb_checkpoints/0-checkpoint.mp4", "__MACOSX/._0.mp4", "._0.mp4", ".DS_Store", "Thumbs.db",
    "@eaDir/0.mp4", "$RECYCLE.BIN/1.mp4",
)  # fmt: skip


@pytest.mark.parametrize("name", CLUTTER)
def test_clutter_is_skipped_and_reported(tmp_path: Path, name: str) -> None:
    found = listing(touched(tmp_path, "a/0.mp4", "a/1.mp4", name), VIDEO)
    assert found.names == ["a/0.mp4", "a/1.mp4"]
    (skipped,) = found.skipped
    assert skipped.reason == "hidden or left by programs" and skipped.example == name.partition("/")[0]


def test_files_of_other_kinds_are_named_by_kind(tmp_path: Path) -> None:
    root = touched(tmp_path, "a.png", "b.png", "preview.mp4", "sound.wav", "README")
    assert [str(skipped) for skipped in listing(root, IMAGE).skipped] == [
        "recordings: 1 (sound.wav)",
        "videos: 1 (preview.mp4)",
        "other files: 1 (README)",
    ]
    assert [file.name for file in media_files(root, AUDIO).files] == ["sound.wav"]
    assert holds(root, IMAGE) and holds(root, VIDEO) and holds(root, AUDIO)


def test_linked_folders_are_followed_and_a_loop_is_named(tmp_path: Path) -> None:
    touched(tmp_path / "store", "c1/0.mp4", "c1/1.mp4")
    touched(tmp_path / "clips", "c0/0.mp4")
    (tmp_path / "clips" / "c1").symlink_to("../store/c1")
    assert listing(tmp_path / "clips", VIDEO).names == ["c0/0.mp4", "c1/0.mp4", "c1/1.mp4"]
    assert len(media_files(tmp_path / "clips", VIDEO).files) == 3
    (tmp_path / "store" / "c1" / "again").symlink_to(tmp_path / "clips")
    with pytest.raises(MetricError, match=r"again links back to \S+, which contains it; remove the link"):
        media_files(tmp_path / "clips", VIDEO)


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train/a/0.png", "val/a/0.png"), "train"),
        (("Train/0.png", "Test/0.png", "valid/0.png"), "Train"),
        (("training/a/0.png", "annotations/a.json"), "training"),
        (("test/a/0.png",), "test"),
        (("train/0.png", "bus/0.png"), ""),
    ],
)
def test_train_is_used_only_when_all_folders_are_splits(
    tmp_path: Path, names: tuple[str, ...], split: str
) -> None:
    found = listing(touched(tmp_path, *names), IMAGE)
    assert found.split == split
    assert all(name.startswith(split) for name in found.names)
    left = {skipped.reason: skipped.files for skipped in found.skipped}
    images = sum(name.endswith(".png") for name in names)
    assert left.get(f"outside of the split {split}", 0) == images - len(found.names)


def test_splits_without_train_are_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(MetricError, match=r"holds the splits test, val, .*ambiguous"):
        listing(touched(tmp_path, "val/0.png", "test/0.png"), IMAGE)


def test_unsupported_format_is_rejected_by_every_reader(tmp_path: Path) -> None:
    touched(tmp_path, "a.mp4", "b.wmv")
    for reader in (listing, media_files):
        with pytest.raises(MetricError, match=r"b\.wmv: \.wmv videos are not supported; convert them to MP4"):
            reader(tmp_path, VIDEO)


def test_parquet_files_follow_links_and_skip_clutter_and_other_splits(tmp_path: Path) -> None:
    touched(tmp_path / "data", "train-0.parquet", "._train-0.parquet", "test-0.parquet")
    touched(tmp_path / "more", "train-1.parquet")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "more")
    files, skipped = parquet_files(tmp_path / "data")
    assert [file.name for file in files] == ["train-1.parquet", "train-0.parquet"]
    assert {s.reason: s.files for s in skipped} == {
        "hidden or left by programs": 1,
        "outside of the split train": 1,
    }


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX systems only")
def test_name_that_is_not_utf8_is_listed_and_can_be_shown(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).touch()
    found = list_folder(tmp_path, (".png",))
    assert [os.fsencode(name) for name in found.names] == [b"caf\xe9.png"]
    assert [str(skipped) for skipped in found.skipped] == ["other files: 1 (caf?.txt)"]
