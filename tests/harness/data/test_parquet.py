"""Parquet files in the Hugging Face layout: columns, shards, splits, and errors for damaged files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data.dataset import label_of
from harness.data.disk import survey as files
from harness.data.open import images
from harness.errors import UserError
from harness.files import stamps
from tests.harness.data.pictures import (
    LABELS,
    all_pixels,
    opened,
    parquet_of,
    pixels,
    png,
    table_of,
    with_classes,
)

ENCODED = [png(image) for image in pixels()]


def written(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def test_parquet_has_a_sample_per_row(tmp_path: Path) -> None:
    data = opened("parquet", parquet_of(tmp_path / "a.parquet", pixels()))
    assert (data.modality, data.shape, data.classes, len(data)) == ("image", (3, 8, 8), 3, 8)
    assert np.array_equal(all_pixels(data), pixels())
    assert images(data, np.arange(8))[1].tolist() == LABELS.tolist()


def test_parquet_shards_are_the_data_of_a_single_file(tmp_path: Path) -> None:
    """The fingerprint does not depend on files, row groups or location."""
    single = opened("parquet", parquet_of(tmp_path / "one" / "a.parquet", pixels()))
    table = table_of(ENCODED, LABELS)
    for number, part in enumerate((table[:3], table[3:])):
        path = tmp_path / "two" / "data" / f"train-{number:05d}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(part, path, row_group_size=2)
    shards = opened("parquet", tmp_path / "two")
    assert shards.fingerprint == single.fingerprint
    assert np.array_equal(all_pixels(shards), pixels())
    assert [shards.key(i) for i in range(8)] == [single.key(i) for i in range(8)]


@pytest.mark.parametrize(
    "test", ["test-00000-of-00001.parquet", "validation.parquet", "default/test/0000.parquet"]
)
def test_parquet_reads_only_train_when_a_folder_has_several_splits(tmp_path: Path, test: str) -> None:
    train = "default/train/0000.parquet" if "/" in test else "train-00000-of-00001.parquet"
    parquet_of(tmp_path / train, pixels())
    parquet_of(tmp_path / test, pixels()[:2], LABELS[:2])
    assert len(opened("parquet", tmp_path)) == 8
    assert len(opened("parquet", tmp_path / test)) == 2


def test_parquet_raises_for_several_splits_without_train(tmp_path: Path) -> None:
    for name in ("test.parquet", "validation.parquet"):
        parquet_of(tmp_path / name, pixels())
    with pytest.raises(UserError, match=r"no train split: test.parquet, validation.parquet; set"):
        opened("parquet", tmp_path)


def test_number_of_classes_is_that_of_the_class_label(tmp_path: Path) -> None:
    table = table_of(ENCODED, LABELS, label="fine")
    named = with_classes(table.append_column("id", pa.array(range(8))), fine=list("abcde"))
    data = opened("parquet", written(tmp_path / "a.parquet", named))
    assert (data.classes, data.sample(7).label) == (5, 2)
    short = with_classes(table, fine=["a", "b"])
    with pytest.raises(
        UserError, match=r"a.parquet: column 'fine': label 2 of row 5 is out of range, expected 0 to 1"
    ):
        opened("parquet", written(tmp_path / "a.parquet", short))


def test_parquet_columns_are_chosen_by_key(tmp_path: Path) -> None:
    table = table_of(ENCODED, LABELS, "front").append_column("back", pa.array(ENCODED[::-1]))
    path = written(tmp_path / "a.parquet", table.append_column("other", pa.array([0] * 8)))
    assert np.array_equal(all_pixels(opened("parquet", path)), pixels())
    turned = opened("parquet", path, image_key="back", label_key="other")
    assert np.array_equal(all_pixels(turned), pixels()[::-1])
    assert turned.classes == 1


def test_parquet_without_labels_has_one_class(tmp_path: Path) -> None:
    table = table_of(ENCODED, LABELS).drop_columns("label")
    data = opened("parquet", written(tmp_path / "a.parquet", table))
    assert (data.classes, data.sample(5).label) == (1, 0)


def test_survey_decodes_parquet_again_only_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without it, files written an instant ago would be read again.
    monkeypatch.setattr(stamps, "TICK_NS", 0)
    path = parquet_of(tmp_path / "a.parquet", pixels())
    first = opened("parquet", path)
    decode = files.decode
    monkeypatch.setattr(files, "decode", lambda *_: pytest.fail("decoded again"))
    assert opened("parquet", path).fingerprint == first.fingerprint
    monkeypatch.setattr(files, "decode", decode)
    parquet_of(path, pixels()[::-1])
    assert opened("parquet", path).fingerprint != first.fingerprint


NULL = {"bytes": None, "path": "a.png"}


@pytest.mark.parametrize(
    ("table", "fields", "message"),
    [
        (table_of([*ENCODED[:-1], b"none"], LABELS), {}, r"a\.parquet row 7 is not an image"),
        (table_of([*ENCODED[:-1], ENCODED[0][:90]], LABELS), {}, r"row 7 is a broken image"),
        (table_of([*ENCODED[:-1], NULL], LABELS), {}, r"row 7: column 'image' has no bytes"),
        (table_of([*ENCODED[:-1], None], LABELS), {}, r"row 7: column 'image' has no bytes"),
        (
            table_of(ENCODED, [None, *LABELS[1:].tolist()]),
            {"label_key": "label"},
            r"column 'label' is empty at row 0",
        ),
        (table_of(ENCODED, LABELS - 2), {}, r"label -2 of row 0"),
        (table_of(ENCODED, LABELS - 1), {"label_key": "label"}, r"3 of 8 labels are hidden \(-1\)"),
        (table_of(ENCODED, LABELS / 2), {"label_key": "label"}, r"float64, and some are not whole"),
        (table_of(ENCODED, list("abcdefgh")), {"label_key": "label"}, r"8 different texts .* captions"),
        (table_of(ENCODED, [b"a"] * 8), {}, r"column 'label' is binary, expected integers or texts"),
        (table_of(ENCODED, LABELS)[:0], {}, r"has no rows"),
        (pa.table({"x": [1]}), {}, r"has columns x \(int64\); choose one with data.image_key"),
        (table_of(ENCODED, LABELS), {"image_key": "label"}, r"column 'label' is int64, expected struct"),
        (table_of(ENCODED, LABELS), {"image_key": "imag"}, r"Did you mean 'image'"),
        (table_of(ENCODED, LABELS), {"label_key": "labels"}, r"Did you mean 'label'"),
        (
            table_of(ENCODED, LABELS, label="fine").append_column("coarse", pa.array(LABELS)),
            {},
            r"fine \(int64\), coarse \(int64\), of which fine, coarse may be labels; choose one with "
            "data.label_key",
        ),
        (
            table_of(ENCODED, LABELS).append_column("more", table_of(ENCODED, LABELS)["image"]),
            {},
            r"choose one with data.image_key",
        ),
    ],
)
def test_parquet_raises_for_unusable_tables(
    tmp_path: Path, table: pa.Table, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        opened("parquet", written(tmp_path / "a.parquet", table), **fields)


def test_parquet_raises_for_missing_or_damaged_files(tmp_path: Path) -> None:
    def check_raises(message: str, root: Path | str) -> None:
        with pytest.raises(UserError, match=message):
            opened("parquet", root)

    check_raises("data.root is empty", "")
    check_raises("no such file", tmp_path / "nowhere.parquet")
    check_raises("has no .parquet files", tmp_path)
    path = parquet_of(tmp_path / "a.parquet", pixels())
    intact = path.read_bytes()
    for content in (intact[:-30], b"", b"text", intact[:4] + bytes(len(intact) - 8) + intact[-4:]):
        path.write_bytes(content)
        check_raises(r"a\.parquet is not a readable parquet file", path)
    path.write_bytes(intact[:4] + bytes(400) + intact[404:])
    check_raises(r"a\.parquet (is a damaged parquet file|row 0)", path)
    path.write_bytes(intact)
    parquet_of(tmp_path / "b.parquet", pixels(height=9))
    check_raises(r"b\.parquet row 0 is 8x9 pixels, but \S*a\.parquet row 0 is 8x8", tmp_path)
    written(tmp_path / "b.parquet", table_of(ENCODED, LABELS, label="kind"))
    check_raises(r"b\.parquet has no column 'label'", tmp_path)


def test_parquet_files_may_use_different_binary_types(tmp_path: Path) -> None:
    cells = [png(x) for x in pixels()]
    for number, kind in enumerate((pa.binary(), pa.large_binary(), pa.binary_view())):
        written(tmp_path / f"{number}.parquet", pa.table({"image": pa.array(cells, kind), "label": LABELS}))
    written(tmp_path / "3.parquet", table_of(cells, LABELS))
    data = opened("parquet", tmp_path, image_key="image")
    assert np.array_equal(all_pixels(data), np.concatenate([pixels()] * 4))
    written(tmp_path / "4.parquet", pa.table({"image": ["text"], "label": [0]}))
    with pytest.raises(
        UserError, match=r"4\.parquet: column 'image' is string, expected struct<bytes, path>"
    ):
        opened("parquet", tmp_path, image_key="image")


@pytest.mark.parametrize("name", [b"image", b"label", b"bytes", b"path"])
def test_parquet_raises_for_a_column_name_that_is_not_utf8(tmp_path: Path, name: bytes) -> None:
    path = parquet_of(tmp_path / "a.parquet", pixels())
    path.write_bytes(path.read_bytes().replace(name, b"\xe9" + name[1:]))
    with pytest.raises(UserError, match=r"a\.parquet is not a readable parquet file"):
        opened("parquet", path)


@pytest.mark.slow
def test_parquet_reads_cifar10(shared_data: Path) -> None:
    data = opened("parquet", shared_data / "cifar10" / "test.parquet")
    assert (len(data), data.shape, data.classes) == (10_000, (3, 32, 32), 10)
    assert np.bincount([label_of(data, index) for index in range(10_000)]).tolist() == [1000] * 10
    pixels, _ = images(data, np.arange(0, 10_000, 5))
    mean = pixels.mean((0, 2, 3)) / 255
    # Published means of the test images.
    assert mean == pytest.approx([0.494, 0.485, 0.450], abs=0.005)


@pytest.mark.parametrize("name", ["fsdd", "sprites"])
def test_parquet_raises_for_a_column_of_other_media(shared_data: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"parquet row 0 is not an image"):
        opened("parquet", shared_data / name)
