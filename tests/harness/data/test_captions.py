"""Captions on disk: columns of parquet, tables next to images, and text files of the same name."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.assembly.resolve import load_spec
from harness.data.dataset import Capabilities, Dataset
from harness.data.disk.captions import checked
from harness.data.found import found_in
from harness.errors import UserError
from tests.harness.data.pictures import LABELS, opened, parquet_of, pixels, png, table_of

TEXTS: list[Any] = ["a cat", ["ein Hund", "a dog"], "家", [], None, "", ["", "x" * 1001], "  a\tfox\n"]
READ = [("a cat",), ("ein Hund", "a dog"), ("家",), (), (), ("",), ("", "x" * 1001), ("a\tfox",)]
LISTS = [[text] if isinstance(text, str) else text for text in TEXTS]


def captions_of(data: Dataset) -> list[tuple[str, ...]]:
    captions = Capabilities(data).captions
    assert captions is not None
    return [captions(index) for index in range(len(data))]


def by_name(data: Any) -> dict[str, tuple[str, ...]]:
    return {Path(name).name: texts for name, texts in zip(data._names, captions_of(data), strict=True)}


def parquet(path: Path, name: str, column: Any, rows: slice = slice(None)) -> Path:
    table = table_of([png(image) for image in pixels()[rows]], LABELS[rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.append_column(name, column), path)
    return path


def images(root: Path, count: int = 8) -> list[str]:
    names = [f"{number}.png" for number in range(count)]
    root.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, pixels(), strict=False):
        (root / name).write_bytes(png(image))
    return names


def csv_of(names: list[str], texts: list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("file_name", "text"), *zip(names, texts, strict=True)])
    return buffer.getvalue()


# ---- parquet ----


@pytest.mark.parametrize("name", ["caption", "captions", "text", "Caption"])
def test_column_of_lists_or_of_texts_gives_the_captions_of_a_row(tmp_path: Path, name: str) -> None:
    file = parquet(tmp_path / "a.parquet", name, pa.array(LISTS, pa.list_(pa.string())))
    data = opened("parquet", file, caption_key="usual")
    assert captions_of(data) == READ
    texts = ["a cat", "b", "家", None, "", " f ", "g", "h"]
    one = parquet(tmp_path / "one.parquet", name, pa.array(texts, pa.large_string()))
    found = [("a cat",), ("b",), ("家",), (), ("",), ("f",), ("g",), ("h",)]
    assert captions_of(opened("parquet", one, caption_key=name)) == found


def test_files_of_a_folder_may_store_different_types_of_texts(tmp_path: Path) -> None:
    parquet(tmp_path / "0.parquet", "text", pa.array(LISTS[:4], pa.list_(pa.string())), slice(4))
    parquet(tmp_path / "1.parquet", "text", pa.array(["e", "f", "g", None], pa.string()), slice(4, None))
    data = opened("parquet", tmp_path, caption_key="usual")
    assert captions_of(data) == [*READ[:4], ("e",), ("f",), ("g",), ()]


def test_captions_are_part_of_the_fingerprint_only_if_they_are_read(tmp_path: Path) -> None:
    first = parquet(tmp_path / "a.parquet", "text", pa.array([f"a {n}" for n in range(8)]))
    other = parquet(tmp_path / "b.parquet", "text", pa.array([f"b {n}" for n in range(8)]))
    plain = parquet_of(tmp_path / "c.parquet", pixels())
    unread = {opened("parquet", file).fingerprint for file in (first, other, plain)}
    read = {opened("parquet", file, caption_key="text").fingerprint for file in (first, other)}
    assert len(unread) == 1 and len(read) == 2 and not unread & read
    assert Capabilities(opened("parquet", first)).captions is None


def test_line_and_row_count_and_name_missing_empty_and_long_captions(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", "text", pa.array(LISTS, pa.list_(pa.string())))
    found = found_in(opened("parquet", file, caption_key="usual"))
    assert found.line().endswith(
        f"; 8 captions (column 'text'); 2 samples have none (first: {file} row 3); 2 are empty (first: "
        f"{file} row 5); 1 have more than 1000 characters (first: {file} row 6)"
    )
    row = found.row()["captions"]
    assert row["captions"] == 8 and row["empty"] == {"number": 2, "first": f"{file} row 5"}
    assert "captions" not in found_in(opened("parquet", file)).row()


@pytest.mark.parametrize(
    ("columns", "key", "sentence"),
    [
        ({"words": ["a"] * 8}, "usual", r"has columns image, label, words, of which none is named captions"),
        (
            {"text": ["a"] * 8, "caption": ["b"] * 8},
            "usual",
            r"text, caption, which may each hold captions; choose",
        ),
        ({"text": ["a"] * 8}, "txt", r"unknown data\.caption_key in .* 'txt' .*Did you mean 'text'"),
        ({"text": list(range(8))}, "usual", r"column 'text' is int64, expected texts or lists of texts"),
        ({"text": [[1]] * 8}, "usual", r"column 'text' is list<.*int64.*>, expected texts"),
        ({"text": ["a"] * 7 + ["x" * 100_001]}, "usual", r"row 7: a caption has 100001 characters"),
    ],
)
def test_unusable_column_is_one_sentence(
    tmp_path: Path, columns: dict[str, list[Any]], key: str, sentence: str
) -> None:
    table = table_of([png(image) for image in pixels()], LABELS)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=sentence):
        opened("parquet", tmp_path / "a.parquet", caption_key=key)


def test_captions_of_the_emoji_are_read(shared_data: Path) -> None:
    file = shared_data / "emoji" / "emoji.parquet"
    if not file.is_file():
        pytest.skip(f"{file} does not exist")
    data = opened("parquet", file, resolution=32, caption_key="usual")
    expected = pq.read_table(file, columns=["captions"])["captions"].to_pylist()
    assert captions_of(data) == [tuple(text.strip() for text in texts) for texts in expected]


# ---- folders ----


@pytest.mark.parametrize("kind", ["metadata.jsonl", "metadata.csv"])
def test_table_of_a_folder_gives_the_captions_of_its_files(tmp_path: Path, kind: str) -> None:
    names = images(tmp_path)
    # One file may have several rows, and another none.
    rows = [*zip(names, "abcdefgh", strict=True), (names[1], "again")][1:]
    if kind.endswith("csv"):
        content = csv_of(*map(list, zip(*rows, strict=True)))
    else:
        content = "\n".join(json.dumps({"file_name": n, "text": t}) for n, t in rows)
    (tmp_path / kind).write_text(content)
    data = opened("folder", tmp_path, caption_key="usual")
    expected = {name: (text,) for name, text in zip(names, "abcdefgh", strict=True)}
    assert by_name(data) == expected | {names[0]: (), names[1]: ("b", "again")}
    assert found_in(data).row()["captions"]["source"] == f"{kind}, column 'text'"


def test_jsonl_may_hold_lists_and_labels_next_to_captions(tmp_path: Path) -> None:
    names = images(tmp_path)
    rows = [{"file_name": n, "label": i % 2, "captions": [f"a {n}", "b"]} for i, n in enumerate(names)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = opened("folder", tmp_path, caption_key="captions")
    assert by_name(data) == {name: (f"a {name}", "b") for name in names} and data.classes == 2


def test_table_of_the_training_split_gives_its_captions(tmp_path: Path) -> None:
    names = images(tmp_path / "train")
    images(tmp_path / "val", 2)
    (tmp_path / "train" / "metadata.csv").write_text(csv_of(names, [f"a {n}" for n in names]))
    data = opened("folder", tmp_path, caption_key="usual")
    assert by_name(data) == {name: (f"a {name}",) for name in names}


def test_text_files_give_the_captions_of_the_images_of_their_name(tmp_path: Path) -> None:
    names = images(tmp_path)
    contents = ["a cat\n", "ein Hund\n\n  a dog ", "家", "\n", "\ufeffmarked"]
    for name, content in zip(names, contents, strict=False):
        (tmp_path / name).with_suffix(".txt").write_text(content, encoding="utf-8")
    (tmp_path / "orphan.txt").write_text("of no image")
    data = opened("folder", tmp_path, caption_key="usual")
    expected = [("a cat",), ("ein Hund", "a dog"), ("家",), ("",), ("marked",), (), (), ()]
    assert captions_of(data) == expected
    line = found_in(data).line()
    assert (
        "6 captions (NAME.txt files); 3 samples have none (first: 5.png); 1 are empty (first: 3.png)" in line
    )
    assert "skipped without a file of their name: 1 (orphan.txt)" in line
    # Captions next to their images are not reported as tables that are not read, but any other text is.
    assert "(orphan.txt not read" in line and "(0.txt" not in line
    assert "other files: 6" in found_in(opened("folder", tmp_path)).line()


@pytest.mark.parametrize(
    ("files", "key", "sentence"),
    [
        ({}, "usual", r"has no captions; expected a column text in metadata\.jsonl"),
        ({}, "text", r"data\.caption_key = text, but .* has no table with columns"),
        ({"metadata.csv": "file_name,words\n0.png,a\n"}, "text", r"unknown data\.caption_key .*'text'"),
        ({"metadata.csv": "file_name,text\nz.png,a\n"}, "usual", r"has no caption of any of the 8 files"),
        (
            {"metadata.jsonl": '{"file_name": "0.png", "text": 3}'},
            "usual",
            r"row 0: a caption is '3', expected",
        ),
        (
            {"metadata.jsonl": '{"file_name": "0.png"}\n\n{"file_name": "1.png", "text"'},
            "usual",
            r"is not a readable table: line 3 is not JSON \(Expecting ':' delimiter\); correct it",
        ),
        (
            {"3.txt": "a", "3.jpg": png(pixels()[0])},
            "usual",
            r"has 3\.jpg and 3\.png, and 3\.txt may have the captions of either; rename one",
        ),
        ({"0.txt": b"\xff\xfea\x00"}, "usual", r"0\.txt is text in UTF-16; save it as UTF-8"),
        ({"0.txt": b"\xe4"}, "usual", r"0\.txt is not text: byte 0xe4"),
        ({"0.txt": b"x" * 400_001}, "usual", r"0\.txt has 400001 bytes, which are no captions"),
    ],
)
def test_unusable_captions_of_a_folder_are_one_sentence(
    tmp_path: Path, files: dict[str, Any], key: str, sentence: str
) -> None:
    images(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=sentence):
        opened("folder", tmp_path, caption_key=key)


def test_rows_of_files_that_do_not_exist_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    names = images(tmp_path / "train")
    images(tmp_path / "val", 1)
    rows = [f"train/{name}" for name in names] + ["val/0.png", "train/gone.png", "train/lost.png"]
    (tmp_path / "metadata.csv").write_text(csv_of(rows, ["a"] * len(rows)))
    line = found_in(opened("folder", tmp_path, caption_key="usual")).line()
    assert (
        "8 captions (metadata.csv, column 'text'; 2 listed files do not exist (first: train/gone.png))"
        in line
    )


def test_row_of_a_name_too_long_for_a_file_is_one_that_does_not_exist(tmp_path: Path) -> None:
    names = images(tmp_path)
    (tmp_path / "metadata.csv").write_text(csv_of([*names, "x" * 5000], ["a"] * (len(names) + 1)))
    line = found_in(opened("folder", tmp_path, caption_key="usual")).line()
    assert f"1 listed files do not exist (first: {'x' * 200})" in line


# ---- spec ----


def test_run_with_a_text_encoder_reads_the_usual_column(tmp_path: Path) -> None:
    text = ["backbone.kind=mmdit", "text.encoder=random:text", "data.name=parquet", "data.resolution=8"]
    assert load_spec("digits", text).data.caption_key == "usual"
    assert load_spec("digits", [*text, "data.caption_key=words"]).data.caption_key == "words"
    assert load_spec("digits", ["data.name=parquet"]).data.caption_key == ""


def test_rows_with_one_image_and_several_captions_are_on_one_side_of_the_split(tmp_path: Path) -> None:
    from harness.data.open import split

    same = np.repeat(pixels()[:4], 2, axis=0)
    table = table_of([png(image) for image in same], LABELS).append_column("text", pa.array(list("abcdefgh")))
    pq.write_table(table, tmp_path / "a.parquet")
    sides = split(opened("parquet", tmp_path / "a.parquet", caption_key="text"), 0.5)
    assert {int(i) // 2 for i in sides.train}.isdisjoint(int(i) // 2 for i in sides.held_out)


def test_half_a_character_is_refused_by_name() -> None:
    """A lone surrogate, as JSON may hold it, is no text for a tokenizer."""
    with pytest.raises(UserError, match=r"row 3: .*half a character at 5"):
        checked(["a cat", "seven\ud83d"], "row 3")
