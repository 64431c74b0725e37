"""Tables of labels next to images: Hugging Face's metadata.csv and metadata.jsonl, EDM's dataset.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.config.data_spec import DataSpec
from harness.data.dataset import Dataset
from harness.data.found import check_labels, found_in
from harness.errors import UserError
from harness.evaluation.samples.sources import open_source
from tests.harness.data.pictures import folder_of, opened, pixels, png, with_classes
from tests.harness.data.recorded import sound, tone

KINDS = ["cat", "dog", "cat", "dog", "cat", "owl", "owl", "dog"]


def loose(root: Path, folders: tuple[str, ...] = ("",)) -> list[str]:
    """Write 8 images, one to each folder after the other, and return their names."""
    names = []
    for number, image in enumerate(pixels()):
        name = f"{folders[number % len(folders)]}{number:03d}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(image))
        names.append(name)
    return names


def jsonl(names: list[str], labels: list[Any], column: str = "label") -> str:
    rows = [{"file_name": n, column: x} for n, x in zip(names, labels, strict=True)]
    return "\n".join(map(json.dumps, rows)) + "\n"


def csv_of(names: list[str], labels: list[Any], column: str = "label") -> str:
    return f"file_name,{column}\n" + "".join(f"{n},{x}\n" for n, x in zip(names, labels, strict=True))


def edm(names: list[str], labels: list[Any] | None) -> str:
    return json.dumps({"labels": None if labels is None else list(zip(names, labels, strict=True))})


def labels_by_name(data: Dataset) -> list[str]:
    return [data.class_names[data.label(i)] for i in range(len(data))]


@pytest.mark.parametrize(("file", "write"), [("metadata.jsonl", jsonl), ("metadata.csv", csv_of)])
@pytest.mark.parametrize("bom", ["utf-8", "utf-8-sig"])
def test_labels_are_those_of_the_table_and_part_of_the_fingerprint(
    tmp_path: Path, file: str, write: Any, bom: str
) -> None:
    names = loose(tmp_path)
    without = opened("folder", tmp_path)
    assert without.classes == 1
    (tmp_path / file).write_text(write(names, KINDS), encoding=bom)
    data = opened("folder", tmp_path)
    assert data.class_names == ["cat", "dog", "owl"] and labels_by_name(data) == KINDS
    assert (
        found_in(data)
        .line()
        .startswith(f"8 samples, 3 classes: cat 3, dog 3, owl 2 (label source: {file}, column 'label')")
    )
    (tmp_path / file).write_text(write(names, KINDS[::-1]), encoding=bom)
    assert len({without.fingerprint, data.fingerprint, opened("folder", tmp_path).fingerprint}) == 3


def test_edm_table_gives_the_classes_and_its_folders_are_only_shards(tmp_path: Path) -> None:
    names = sorted(loose(tmp_path, ("00000/", "00001/")))
    (tmp_path / "dataset.json").write_text(edm(names, [0, 1, 2, 0, 4, 4, 1, 0]))
    data = opened("folder", tmp_path)
    assert [data.label(i) for i in range(8)] == [0, 1, 2, 0, 4, 4, 1, 0]
    # EDM counts a class without samples: its networks have max + 1 classes.
    assert data.class_names == list("01234")
    (tmp_path / "dataset.json").write_text(edm(names, None))
    data = opened("folder", tmp_path)
    assert (data.classes, found_in(data).classes) == (1, ())
    assert "dataset.json has no labels" in found_in(data).line()


def test_table_in_the_train_folder_labels_it(tmp_path: Path) -> None:
    names = loose(tmp_path / "train")
    loose(tmp_path / "test")
    (tmp_path / "train" / "metadata.csv").write_text(csv_of(names, KINDS, "class_name"))
    data = opened("folder", tmp_path)
    assert len(data) == 8 and labels_by_name(data) == KINDS


def test_table_in_the_root_may_list_other_splits(tmp_path: Path) -> None:
    every = loose(tmp_path, ("train/", "val/"))
    (tmp_path / "metadata.jsonl").write_text(jsonl(every, KINDS))
    data = opened("folder", tmp_path)
    assert labels_by_name(data) == KINDS[::2]


def test_captions_are_no_labels(tmp_path: Path) -> None:
    folder_of(tmp_path, pixels())
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png"))
    by_folder = opened("folder", tmp_path).fingerprint
    (tmp_path / "metadata.jsonl").write_text(jsonl(names, [f"a photo {n}" for n in names], "text"))
    data = opened("folder", tmp_path)
    assert data.fingerprint == by_folder and found_in(data).label_source == "class folders"


def test_hidden_labels_of_a_table_are_reported_when_training_needs_them(tmp_path: Path) -> None:
    names = loose(tmp_path)
    (tmp_path / "metadata.csv").write_text(csv_of(names, [-1] * 8))
    data = opened("folder", tmp_path)
    assert data.classes == 1
    with pytest.raises(
        UserError, match=r"training needs labels, but metadata\.csv.*8 of 8 labels are hidden"
    ):
        check_labels(data)
    check_labels(opened("folder", tmp_path, label_key="none"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metadata.csv", "file_name,label\n000.png,1\n", r"001\.png is not listed in metadata\.csv"),
        ("metadata.csv", "name,label\n000.png,1\n", r"lacks a value of 'file_name'"),
        ("metadata.csv", "file_name,label,target\n000.png,1,2\n", None),
        (
            "metadata.csv",
            "file_name,y,target\n000.png,1,2\n",
            r"of which y, target may be labels; choose one",
        ),
        ("metadata.jsonl", '{"file_name": "a.png", "label": [1]}', r"'label' of a\.png is \[1\], expected"),
        ("metadata.jsonl", "[1]\n", r"expected one JSON object per line"),
        ("metadata.jsonl", "{", r"metadata\.jsonl is not a readable table"),
        ("dataset.json", '{"labels": [["000.png", 0.5]]}', r"label of 000\.png is 0\.5, expected a class"),
        ("dataset.json", '{"labels": [3]}', r"'labels' is not a list of \[file, class number\]"),
        ("dataset.json", "[", r"dataset\.json is not a readable table"),
    ],
)
def test_unusable_table_raises_an_error_that_names_it(
    tmp_path: Path, file: str, content: str, message: str | None
) -> None:
    loose(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message or r"001\.png is not listed") as raised:
        opened("folder", tmp_path)
    assert "\n" not in str(raised.value)


def test_table_in_utf16_is_named(tmp_path: Path) -> None:
    names = loose(tmp_path)
    (tmp_path / "metadata.csv").write_text(csv_of(names, KINDS), encoding="utf-16")
    with pytest.raises(UserError, match=r"metadata\.csv is not a readable table: .*save it as UTF-8"):
        opened("folder", tmp_path)


def test_two_tables_are_ambiguous(tmp_path: Path) -> None:
    names = loose(tmp_path)
    (tmp_path / "metadata.csv").write_text(csv_of(names, KINDS))
    (tmp_path / "metadata.jsonl").write_text(jsonl(names, KINDS))
    with pytest.raises(UserError, match=r"metadata\.csv and metadata\.jsonl, .*ambiguous"):
        opened("folder", tmp_path)


def test_label_key_without_a_table_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.label_key = kind, but .* has no table"):
        opened("folder", folder_of(tmp_path, pixels()), label_key="kind")


def parquet_table(root: Path, names: list[str], labels: list[Any], classes: list[str] | None = None) -> None:
    table = pa.table({"file_name": names, "label": labels, "embedding": [[0.5, 0.5]] * len(names)})
    pq.write_table(with_classes(table, label=classes) if classes else table, root / "metadata.parquet")


def test_parquet_table_gives_the_labels_of_csv_to_training_and_evaluation(tmp_path: Path) -> None:
    names = loose(tmp_path)
    (tmp_path / "metadata.csv").write_text(csv_of(names, KINDS))
    by_csv = opened("folder", tmp_path)
    (tmp_path / "metadata.csv").unlink()
    parquet_table(tmp_path, names, KINDS)
    data = opened("folder", tmp_path)
    assert (labels_by_name(data), data.fingerprint) == (KINDS, by_csv.fingerprint)
    assert found_in(data).label_source == "metadata.parquet, column 'label'"
    evaluated = open_source(str(tmp_path), "image", DataSpec()).found
    assert evaluated is not None and evaluated.classes == (("cat", 3), ("dog", 3), ("owl", 2))


def test_class_numbers_of_a_parquet_table_are_named_as_it_declares(tmp_path: Path) -> None:
    names, classes = loose(tmp_path), ["owl", "cat", "dog"]
    parquet_table(tmp_path, names, [classes.index(kind) for kind in KINDS], classes)
    assert labels_by_name(opened("folder", tmp_path)) == KINDS
    parquet_table(tmp_path, names, [3, *[0] * 7], classes)
    with pytest.raises(UserError, match=r"'label' of 000.png is 3, but the file declares 3 classes"):
        opened("folder", tmp_path)


def test_parquet_table_of_sounds_is_no_data_set_of_rows(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(sound(tone()))
    parquet_table(tmp_path, ["a.wav", "b.wav"], ["low", "high"])
    assert labels_by_name(opened("sounds", tmp_path)) == ["low", "high"]
    evaluated = open_source(str(tmp_path), "audio", DataSpec()).found
    assert evaluated is not None and evaluated.samples == 2


def test_damaged_parquet_table_is_named(tmp_path: Path) -> None:
    loose(tmp_path)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(UserError, match=r"metadata\.parquet is not a"):
        opened("folder", tmp_path)


def test_text_with_a_comma_outside_of_quotes_is_refused(tmp_path: Path) -> None:
    """Its end would be cut off in silence."""
    names = loose(tmp_path)
    rows = "".join(f"{name},a cat, sitting\n" for name in names)
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{rows}")
    for key in ("", "text"):
        with pytest.raises(UserError, match="row 1 has more cells than the header"):
            opened("folder", tmp_path, caption_key=key)
