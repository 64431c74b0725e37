"""Data of strangers: files that unpack to much more than they are, and metadata of impossible shapes."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.data.disk import pixels as reader
from harness.data.disk.pixels import decode
from harness.errors import UserError
from harness.files import pictures
from metrics.files import numpy_files
from metrics.files.parquet_files import bounded_batches
from metrics.value import MetricError
from tests.harness.data.pictures import LABELS, folder_of, opened, pixels, png, table_of, with_classes

ENCODED = [png(image) for image in pixels()]
DIGITS = "9" * 5000


def test_column_that_unpacks_to_gigabytes_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of zeros shrink a thousandfold; each group of 4 rows takes 4 MB."""
    monkeypatch.setattr(numpy_files, "SPARE", 2**25)
    cells = pa.StructArray.from_arrays([pa.array([bytes(2**20)] * 4)], ["bytes"])
    file = tmp_path / "a.parquet"
    with pq.ParquetWriter(file, pa.schema([("image", cells.type)]), compression="zstd") as writer:
        for _ in range(12):
            writer.write_table(pa.table({"image": cells}))
    assert file.stat().st_size < 2**17
    with pytest.raises(UserError, match=r"a\.parquet unpacks to .* bytes"):
        opened("parquet", file)


@pytest.mark.parametrize("name", ["state", "observation.state"])
def test_column_of_lists_that_unpacks_to_more_than_its_bound_is_refused_by_its_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(numpy_files, "SPARE", 2**20)
    cells = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2**20, np.float32)), 2**14)
    table = pa.table({name: cells, "other": pa.array([0] * 64)})
    pq.write_table(table, file := tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(MetricError, match=r"a\.parquet unpacks to [0-9,]+ bytes, more than"):
        next(bounded_batches(file, [name]))
    assert next(bounded_batches(file, ["other"])).num_columns == 1


def test_rows_are_counted_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(table_of(ENCODED * 40, None or [0] * 320), tmp_path / "a.parquet")
    assert len(opened("parquet", tmp_path)) == 320
    monkeypatch.setattr(numpy_files, "SPARE", 0)
    monkeypatch.setattr(numpy_files, "EXPANDS", 1)
    with pytest.raises(UserError, match=r"a\.parquet unpacks to more than [0-9,]+ bytes"):
        opened("parquet", tmp_path)


def header_of(width: int, height: int) -> bytes:
    """Return a PNG whose header states another size."""
    content = bytearray(ENCODED[0])
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def test_image_of_30000_pixels_a_side_in_parquet_is_refused_by_its_row(tmp_path: Path) -> None:
    pq.write_table(table_of([*ENCODED[:3], header_of(30_000, 30_000)], [0, 1, 0, 1]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet row 3 has more than 134,217,728 pixels"):
        opened("parquet", tmp_path)


def test_large_transparent_image_is_composited_in_strips_with_the_same_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (13, 7, 4), dtype=np.uint8)
    content = png(image)
    at_once = np.asarray(decode(content, "a"))
    monkeypatch.setattr(reader, "LARGE", 20)
    assert np.array_equal(np.asarray(decode(content, "a")), at_once)


@pytest.mark.parametrize("name", ["EPS", "SVG", "ICO", "PDF"])
def test_formats_that_run_programs_or_name_files_are_not_opened(name: str, tmp_path: Path) -> None:
    contents = {
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/a.png"/></svg>',
        "ICO": b"\0\0\1\0\1\0\x08\x08\0\0\1\0\x20\0\x68\0\0\0\x16\0\0\0",
        "PDF": b"%PDF-1.4\n",
    }
    with pytest.raises(UserError, match="is not an image of a supported format"):
        decode(contents[name], name)
    assert name not in pictures.FORMATS


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    column = table_of(ENCODED, LABELS)["image"]
    pq.write_table(pa.Table.from_arrays([column, column], ["image", "image"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has two columns of the name 'image'"):
        opened("parquet", tmp_path)


def test_column_without_a_name_is_refused(tmp_path: Path) -> None:
    pq.write_table(table_of(ENCODED, LABELS, column=""), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"one has no name; name it"):
        opened("parquet", tmp_path)


@pytest.mark.parametrize(
    "metadata",
    [
        '{"info": {"features": {"label": {"_type": "ClassLabel", "names": 3}}}}',
        '{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, 2, 3]}}}}',
        '{"info": {"features": {"label": {"_type": "ClassLabel", "names": ["a", "a", "b"]}}}}',
        '{"info": {"features": {"label": 3}}}',
        '{"info": {"features": [1]}}',
        '{"info": 3}',
        "3",
        "[" * 5000,
        '{"a":' * 200_000,
        f'{{"info": {DIGITS}}}',
    ],
)
def test_metadata_of_another_structure_declares_no_classes(tmp_path: Path, metadata: str) -> None:
    table = table_of(ENCODED, LABELS).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    data = opened("parquet", tmp_path)
    assert (data.classes, data.class_names) == (3, [])


def test_class_that_metadata_does_not_declare_is_refused(tmp_path: Path) -> None:
    pq.write_table(with_classes(table_of(ENCODED, LABELS), label=["a", "b"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"label 2 of row 5 is out of range, expected 0 to 1"):
        opened("parquet", tmp_path)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "dataset.json"])
def test_numbers_of_thousands_of_digits_and_deep_nesting_in_tables_are_refused_or_names(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "a.png").write_bytes(ENCODED[0])
    row = {"file_name": "a.png", "label": "DIGITS"}
    texts = {
        "metadata.csv": [f"file_name,label\na.png,{DIGITS}\n"],
        "metadata.jsonl": [json.dumps(row).replace('"DIGITS"', text) for text in (DIGITS, "[" * 5000)],
        "dataset.json": [f'{{"labels": [["a.png", {text}]]}}' for text in (DIGITS, "[" * 200_000)],
    }
    for text in texts[name]:
        (tmp_path / name).write_text(text)
        if name.endswith("csv"):
            assert opened("folder", tmp_path).class_names == [DIGITS]
        else:
            with pytest.raises(UserError, match=f"{name} is not a readable table"):
                opened("folder", tmp_path)


def test_folders_named_by_thousands_of_digits_are_in_alphabetical_order(tmp_path: Path) -> None:
    for folder in ("9" * 200, "10", "2"):
        folder_of(tmp_path, pixels()[:1], LABELS[:1])
        (tmp_path / "class0").rename(tmp_path / folder)
    assert opened("folder", tmp_path).class_names == ["10", "2", "9" * 200]


def test_picture_with_900_million_pixels_is_refused_by_the_report(tmp_path: Path) -> None:
    from reports.pages.samples import _uri

    file = tmp_path / "step-00000001.png"
    file.write_bytes(header_of(30_000, 30_000))
    with pytest.raises(UserError, match=r"step-00000001\.png has more than 134,217,728 pixels; remove it"):
        _uri(file, 480)
    file.write_bytes(header_of(800, 800))
    with pytest.raises(UserError, match=r"step-00000001\.png is not an image"):
        _uri(file, 480)
    Image.new("RGB", (4, 4)).save(file)
    assert _uri(file, 480).startswith("data:image/png;base64,")
