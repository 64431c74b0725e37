"""Folders of images: the files found, the cached survey, and errors for unusable folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data.dataset import label_of
from harness.data.disk import survey as files
from harness.data.open import split
from harness.errors import UserError
from harness.files import stamps
from tests.harness.data.pictures import LABELS, all_pixels, folder_of, opened, parquet_of, pixels, png

Image.init()
READ = ("PNG", "JPEG", "WEBP", "BMP", "DIB")


def test_folder_has_a_class_per_subfolder(tmp_path: Path) -> None:
    data = opened("folder", folder_of(tmp_path, pixels()))
    assert (data.modality, data.classes, data.shape, len(data)) == ("image", 3, (3, 8, 8), 8)
    assert data.class_names == ["class0", "class1", "class2"]
    assert [data.sample(i).label for i in range(8)] == LABELS.tolist()
    assert np.array_equal(all_pixels(data), pixels())


def test_folder_finds_nested_images_and_ignores_hidden_and_other_files(tmp_path: Path) -> None:
    folder_of(tmp_path / "deep", pixels())
    inner = tmp_path / "deep" / "class1" / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "more.PNG").write_bytes(png(pixels()[0]))
    for name in (".hidden.png", "class1/notes.txt", "LICENSE"):
        (tmp_path / "deep" / name).write_bytes(b"no image")
    (tmp_path / "deep" / ".git").mkdir()
    data = opened("folder", tmp_path / "deep")
    assert (len(data), data.classes) == (9, 3)

    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "a.jpg").write_bytes(png(pixels()[0], "JPEG"))
    data = opened("folder", flat)
    assert (len(data), data.classes, data.sample(0).label) == (1, 1, 0)


@pytest.mark.parametrize("end", [end for end, form in Image.registered_extensions().items() if form in READ])
def test_no_suffix_of_a_supported_format_is_ignored(tmp_path: Path, end: str) -> None:
    """Every suffix that Pillow registers for these formats is read or raises an error."""
    root = folder_of(tmp_path, pixels())
    (root / "class1" / f"other{end}").write_bytes(png(pixels()[0], Image.registered_extensions()[end]))
    if end in (".apng", ".dib"):
        with pytest.raises(UserError, match=rf"{end} images are not supported; convert them to PNG"):
            opened("folder", root)
    else:
        assert len(opened("folder", root)) == 9


@pytest.mark.parametrize("to", [".", "..", "../..", "../../class0"])
def test_folder_raises_for_a_cycle_of_links(tmp_path: Path, to: str) -> None:
    """class1/deep links to class1, to the root, to its parent, or to class0, which links back to class1."""
    root = folder_of(tmp_path / "data", pixels())
    (root / "class1" / "deep").mkdir()
    (root / "class1" / "deep" / "again").symlink_to(to)
    if to.endswith("class0"):
        (root / "class0" / "back").symlink_to("../class1")
    with pytest.raises(UserError, match=r"links back to \S+, which contains it; remove the link"):
        opened("folder", root)


def test_folder_follows_links_to_other_folders(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", pixels())
    folder_of(tmp_path / "more", pixels())
    (root / "class1" / "more").symlink_to(tmp_path / "more" / "class0")
    assert len(opened("folder", root)) == 8 + 3


def test_label_does_not_decode_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, rows = folder_of(tmp_path / "f", pixels()), parquet_of(tmp_path / "p.parquet", pixels())
    for name, root in (("folder", files), ("parquet", rows)):
        data = opened(name, root)
        monkeypatch.setattr(f"harness.data.disk.{name}.decode", lambda content, where: pytest.fail(where))
        assert [label_of(data, i) for i in range(8)] == LABELS.tolist()


def test_fingerprint_depends_only_on_content_and_labels(tmp_path: Path) -> None:
    one = opened("folder", folder_of(tmp_path / "one", pixels())).fingerprint
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere")
    assert opened("folder", tmp_path / "elsewhere").fingerprint == one
    assert opened("parquet", parquet_of(tmp_path / "p.parquet", pixels())).fingerprint == one
    assert opened("folder", tmp_path / "one", resolution=4, channels=1).fingerprint == one
    assert opened("folder", folder_of(tmp_path / "labels", pixels(), LABELS[::-1])).fingerprint != one
    other = pixels()
    other[3, 0, 0, 0] ^= 1
    assert opened("folder", folder_of(tmp_path / "pixel", other)).fingerprint != one


def test_split_depends_only_on_content(tmp_path: Path) -> None:
    """An image that is renamed, moved or stored as parquet stays on its side of the split."""
    folder = opened("folder", folder_of(tmp_path / "a", pixels()))
    turned = opened("parquet", parquet_of(tmp_path / "p.parquet", pixels()[::-1], LABELS[::-1]))
    assert set(split(folder, 0.5).held_out) == {7 - i for i in split(turned, 0.5).held_out}


def test_survey_reads_only_changed_files_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without it, files written an instant ago would be read again.
    monkeypatch.setattr(stamps, "TICK_NS", 0)
    root = folder_of(tmp_path, pixels())
    first = opened("folder", root)
    decoded = []
    decode = files.decode
    monkeypatch.setattr(
        files, "decode", lambda content, where: (decoded.append(Path(where).name), decode(content, where))[1]
    )
    assert opened("folder", root).fingerprint == first.fingerprint
    assert decoded == []

    changed = root / "class1" / "003.png"
    stamp = changed.stat()
    content = bytearray(png(255 - pixels()[3]))
    changed.write_bytes(content)
    os.utime(changed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert opened("folder", root).fingerprint != first.fingerprint
    assert decoded == ["003.png"]


@pytest.mark.parametrize("damage", [("class0", "class1"), (",8,8,3", ",4,4,3"), ('"', ""), ("\n", "")])
def test_survey_is_repeated_when_its_cache_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: tuple[str, str]
) -> None:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "cache"))
    root = folder_of(tmp_path / "data", pixels())
    first = opened("folder", root)
    (store,) = (tmp_path / "cache" / "surveys").glob("*.jsonl")
    intact = store.read_text()
    store.write_text(intact.replace(*damage))
    assert store.read_text() != intact
    again = opened("folder", root)
    assert (again.fingerprint, again.shape) == (first.fingerprint, first.shape)


def test_folder_raises_for_mixed_sizes_without_a_resolution(tmp_path: Path) -> None:
    root = folder_of(tmp_path, pixels())
    (root / "class2" / "zz.png").write_bytes(png(pixels(1, 20, 11)[0]))
    with pytest.raises(
        UserError,
        match=r"zz.png is 11x20 pixels, but \S*000.png is 8x8; choose one size, .*data.resolution=32",
    ):
        opened("folder", root)
    assert opened("folder", root, resolution=8).sample(8).x.shape == (3, 8, 8)


def test_folder_is_colour_when_any_image_is(tmp_path: Path) -> None:
    root = folder_of(tmp_path, pixels(channels=1))
    assert opened("folder", root).shape == (1, 8, 8)
    (root / "class2" / "zz.png").write_bytes(png(pixels()[0]))
    data = opened("folder", root)
    assert data.shape == (3, 8, 8)
    assert np.array_equal(data.sample(0).x, np.repeat(pixels(channels=1)[0].transpose(2, 0, 1), 3, 0))


def test_folder_raises_for_unusable_roots_and_images(tmp_path: Path) -> None:
    def check_raises(message: str, root: Path | str) -> None:
        with pytest.raises(UserError, match=message):
            opened("folder", root)

    root = folder_of(tmp_path / "data", pixels())
    check_raises("data.root is empty", "")
    check_raises("no such file or folder", tmp_path / "nowhere")
    check_raises("is a file, expected a folder", root / "class0" / "000.png")
    (tmp_path / "empty").mkdir()
    check_raises("has no images", tmp_path / "empty")
    (root / "class7").mkdir()
    check_raises(r"class folder \S*class7 has no images", root)
    (root / "class7" / "a.gif").write_bytes(b"GIF89a")
    check_raises(r"a\.gif: \.gif images are not supported", root)
    (root / "class7" / "a.gif").rename(root / "class7" / "a.png")
    check_raises(r"a\.png is ", root)
    (root / "class7" / "a.png").write_bytes(png(pixels()[0])[:-30])
    check_raises(r"class7/a\.png is a broken image", root)
    (root / "class7" / "a.png").rename(root / "a.png")
    shutil.rmtree(root / "class7")
    check_raises(r"a\.png is next to class folders", root)


def test_sample_raises_when_the_image_was_deleted(tmp_path: Path) -> None:
    data = opened("folder", folder_of(tmp_path, pixels()))
    (tmp_path / "class0" / "001.png").unlink()
    with pytest.raises(UserError, match=r"001\.png.*it existed when the run started"):
        data.sample(1)


def test_survey_raises_when_its_cache_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_of(tmp_path / "data", pixels())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write the cache .*FLOWRACE_CACHE"):
        opened("folder", root)
