"""Further members of the kinds of data that people have: exports, copies and archives of other systems."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.data.found import check_labels, found_in
from harness.errors import UserError
from tests.harness.data.pictures import LABELS, folder_of, opened, parquet_of, pixels, png, table_of
from tests.harness.data.recorded import frames, video

ENCODED = [png(image) for image in pixels()]


def loose(root: Path) -> list[str]:
    names = [f"{number}.png" for number in range(4)]
    for name, content in zip(names, ENCODED, strict=False):
        (root / name).write_bytes(content)
    return names


@pytest.mark.parametrize("column", ["Unnamed: 0", "index", "id"])
def test_row_numbers_of_a_csv_are_no_labels(tmp_path: Path, column: str) -> None:
    names = loose(tmp_path)
    rows = "".join(f"{number},{name},a text\n" for number, name in enumerate(names))
    (tmp_path / "metadata.csv").write_text(f"{column},file_name,caption\n{rows}")
    data = opened("folder", tmp_path)
    assert data.classes == 1 and found_in(data).label_source.startswith("none")


def test_table_with_line_ends_of_windows_and_quoted_names_is_read(tmp_path: Path) -> None:
    names = loose(tmp_path)
    rows = "".join(f'"{name}","dog, large"\r\n' for name in names)
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + f'"file_name","label"\r\n{rows}'.encode())
    assert opened("folder", tmp_path).class_names == ["dog, large"]


def test_table_that_names_files_with_folders_of_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / "00000").mkdir()
    for number in range(2):
        (tmp_path / "00000" / f"{number}.png").write_bytes(ENCODED[number])
    (tmp_path / "dataset.json").write_text('{"labels": {"00000\\\\0.png": 1, "00000\\\\1.png": 0}}')
    data = opened("folder", tmp_path)
    assert [data.label(index) for index in range(2)] == [1, 0]


@pytest.mark.parametrize(
    "folders", [("Train", "Test"), ("training", "validation", "testing"), ("TRAIN", "dev")]
)
def test_splits_in_other_spellings_are_splits(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        folder_of(tmp_path / folder, pixels())
    data = opened("folder", tmp_path)
    assert len(data) == 8 and data.class_names == ["class0", "class1", "class2"]
    assert found_in(data).label_source == f"class folders of {folders[0]}"


def test_folder_with_a_split_and_a_class_has_two_classes(tmp_path: Path) -> None:
    for folder in ("train", "locomotive"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes(ENCODED[0])
    assert opened("folder", tmp_path).class_names == ["locomotive", "train"]


def test_zero_padded_folders_are_in_numeric_order_and_keep_their_names(tmp_path: Path) -> None:
    for name in ("010", "2", "001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(ENCODED[0])
    assert opened("folder", tmp_path).class_names == ["001", "2", "010"]


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_hidden_labels_of_some_rows_stop_only_training(tmp_path: Path, end: str) -> None:
    names = loose(tmp_path)
    if end == "csv":
        (tmp_path / "metadata.csv").write_text("file_name,label\n" + "".join(f"{n},-1\n" for n in names))
    else:
        table = pa.table({"file_name": names, "label": [0, 1, -1, 0]})
        pq.write_table(table, tmp_path / "metadata.parquet")
    data = opened("folder", tmp_path)
    assert len(data) == 4
    with pytest.raises(UserError, match=r"training needs labels, but .* labels are hidden \(-1\)"):
        check_labels(data)


def test_linked_file_is_read_and_a_broken_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "store" / "blob").write_bytes(ENCODED[0])
    (tmp_path / "data" / "a" / "0.png").symlink_to(tmp_path / "store" / "blob")
    assert len(opened("folder", tmp_path / "data")) == 1
    (tmp_path / "store" / "blob").unlink()
    with pytest.raises(UserError, match=r"cannot read .*0\.png: No such file"):
        opened("folder", tmp_path / "data")


@pytest.mark.parametrize("name", ["Thumbs.db", "._0.png", ".Trash-1000/0.png", "__MACOSX/a/._0.png"])
def test_leavings_of_other_systems_are_no_samples_of_a_video_set(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.mkv").write_bytes(video(frames(4)))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(video(frames(4)))
    data = opened("videos", tmp_path, frames=2)
    assert data.files == 1 and "hidden or left by programs: " in found_in(data).line()


def camera(pictures: list[np.ndarray]) -> bytes:
    """Return a JPEG with several pictures, as cameras write it."""
    content, images = io.BytesIO(), [Image.fromarray(picture) for picture in pictures]
    images[0].save(content, "MPO", save_all=True, append_images=images[1:])
    return content.getvalue()


def test_camera_jpeg_with_several_pictures_in_parquet_is_its_first_picture(tmp_path: Path) -> None:
    pq.write_table(table_of([camera(list(pixels()[:3]))], [0]), tmp_path / "a.parquet")
    first = np.asarray(Image.open(io.BytesIO(camera([pixels()[0], pixels()[0]]))).convert("RGB"))
    assert np.array_equal(opened("parquet", tmp_path).sample(0).x, first.transpose(2, 0, 1))


def test_jpeg_followed_by_a_video_is_its_picture(tmp_path: Path) -> None:
    """Phones append a short video to a photo."""
    (tmp_path / "0.jpg").write_bytes(png(pixels()[0], "JPEG") + video(frames(4), "mp4", "mpeg4", "yuv420p"))
    (tmp_path / "1.jpg").write_bytes(png(pixels()[0], "JPEG"))
    data = opened("folder", tmp_path)
    assert np.array_equal(data.sample(0).x, data.sample(1).x)


def test_captions_in_files_next_to_images_are_stated(tmp_path: Path) -> None:
    for name in loose(tmp_path):
        (tmp_path / name).with_suffix(".txt").write_text("a caption")
    data = opened("folder", tmp_path)
    assert len(data) == 4 and "skipped other files: 4 (0.txt, ...)" in found_in(data).line()


def test_parquet_of_equal_size_and_time_is_read_again(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", pixels())
    before, first = file.stat(), opened("parquet", file)
    other = parquet_of(tmp_path / "b" / "a.parquet", pixels()[::-1].copy(), LABELS)
    content = other.read_bytes()
    file.write_bytes(content[: before.st_size] + bytes(max(0, before.st_size - len(content))))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    if len(content) == before.st_size:
        assert opened("parquet", file).fingerprint != first.fingerprint
        return
    with pytest.raises(UserError, match=r"a\.parquet"):
        opened("parquet", file)


def test_table_of_an_unknown_name_is_named_as_not_read(tmp_path: Path) -> None:
    names = loose(tmp_path)
    (tmp_path / "labels.csv").write_text("id,label\n" + "".join(f"{name},1\n" for name in names))
    source = found_in(opened("folder", tmp_path)).label_source
    assert "labels.csv not read: tables are metadata.csv" in source


def test_folders_of_parts_of_the_same_samples_are_no_classes(tmp_path: Path) -> None:
    for folder in ("images", "Masks"):
        (tmp_path / folder).mkdir()
        loose(tmp_path / folder)
    with pytest.raises(UserError, match=r"parts of the same samples, not classes; set data\.root to"):
        opened("folder", tmp_path)
    # Classes of such names have files of other names.
    (tmp_path / "Masks" / "0.png").rename(tmp_path / "Masks" / "other.png")
    assert opened("folder", tmp_path).classes == 2


def test_link_that_leads_back_is_refused_in_folders_of_tar_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "back").symlink_to(tmp_path)
    with pytest.raises(UserError, match="links back to"):
        opened("webdataset", tmp_path)
