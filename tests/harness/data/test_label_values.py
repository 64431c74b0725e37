"""Labels of samples in parquet and npz: usual names only, texts as classes, problems only when needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.assembly.resolve import load_spec
from harness.config.data_spec import DataSpec
from harness.data.found import check_labels, found_in
from harness.data.pin import pinned
from harness.errors import UserError
from harness.evaluation.samples.sources import open_source
from tests.harness.data.pictures import LABELS, folder_of, opened, pixels, png, table_of, with_classes

ENCODED = [png(image) for image in pixels()]
ROWS = list(range(8))


def rows(path: Path, **columns: Any) -> Path:
    table = table_of(ENCODED, LABELS).drop_columns("label")
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("name", ["__index_level_0__", "image_id", "width", "aesthetic_score"])
def test_integer_column_of_another_name_is_no_label(tmp_path: Path, name: str) -> None:
    data = opened(
        "parquet", rows(tmp_path / "a.parquet", caption=[f"photo {i}" for i in ROWS], **{name: ROWS})
    )
    assert (data.classes, found_in(data).label_source) == (1, f"none: {name} not taken as labels")
    check_labels(data)
    assert opened("parquet", tmp_path / "a.parquet", label_key=name).classes == 8


@pytest.mark.parametrize("name", ["labels", "class_id", "y", "target", "fine_label", "Label"])
def test_usual_name_is_the_label_and_is_stated(tmp_path: Path, name: str) -> None:
    data = opened("parquet", rows(tmp_path / "a.parquet", **{"width": [8] * 8, name: LABELS}))
    assert [data.label(i) for i in range(8)] == LABELS.tolist()
    assert f"label source: column '{name}'" in found_in(data).line()


def test_index_that_pandas_writes_is_no_label(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"image": ENCODED, "caption": ["photo"] * 8}).drop(index=3)
    frame.to_parquet(tmp_path / "a.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "a.parquet").names
    assert opened("parquet", tmp_path / "a.parquet", image_key="image").classes == 1


def test_class_label_gives_names_and_numbers(tmp_path: Path) -> None:
    table = with_classes(table_of(ENCODED, LABELS), label=["tench", "cock", "hen"])
    pq.write_table(table, tmp_path / "a.parquet")
    data = opened("parquet", tmp_path / "a.parquet")
    assert found_in(data).classes == (("tench", 3), ("cock", 2), ("hen", 3))


HIDDEN = {
    "all hidden": (np.full(8, -1), "8 of 8 labels are hidden"),
    "some hidden": (np.where(LABELS == 1, -1, LABELS), "2 of 8 labels are hidden"),
    "fractions": (LABELS + 0.25, "some are not whole numbers"),
    "prompts": (np.array([f"a photo of {i}" for i in ROWS]), "8 different texts for 8 samples are captions"),
}


@pytest.mark.parametrize("kind", HIDDEN)
@pytest.mark.parametrize("end", ["parquet", "npz"])
def test_unusable_labels_matter_only_to_what_needs_labels(tmp_path: Path, kind: str, end: str) -> None:
    values, message = HIDDEN[kind]
    path = tmp_path / f"a.{end}"
    if end == "parquet":
        rows(path, label=values.tolist())
    else:
        np.savez(path, images=pixels(), labels=values)
    data = opened(end, path)
    plain = opened(end, path, label_key="none")
    assert (data.classes, data.fingerprint) == (1, plain.fingerprint)
    check_labels(plain)
    with pytest.raises(UserError, match=rf"training needs labels, but .*{message}.*data\.label_key=none"):
        check_labels(data)
    with pytest.raises(UserError, match="training needs labels"):
        pinned(load_spec("digits", (f"data.name={end}", f"data.root={path}")))
    source = open_source(str(path), "image", DataSpec())
    assert source.found is not None and message in source.found.line()
    (batch,) = source.batches(None, 8)
    assert batch.labels is None and len(batch.inputs) == 8


@pytest.mark.parametrize("end", ["parquet", "npz"])
def test_texts_that_repeat_are_class_names(tmp_path: Path, end: str) -> None:
    words = np.array(["tench", "cock", "hen"])[LABELS]
    path = tmp_path / f"a.{end}"
    rows(path, label=words.tolist()) if end == "parquet" else np.savez(path, images=pixels(), labels=words)
    data = opened(end, path)
    assert data.class_names == ["cock", "hen", "tench"]
    assert [data.class_names[data.label(i)] for i in range(8)] == words.tolist()
    source = open_source(str(path), "image", DataSpec())
    assert list(source.class_names) == data.class_names


@pytest.mark.parametrize("extra", [{"prompts": np.array(list("abcdefgh"))}, {"scores": LABELS / 3}])
def test_other_arrays_of_an_npz_are_no_labels(tmp_path: Path, extra: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(), **extra)
    data = opened("npz", tmp_path / "a.npz")
    assert (data.classes, found_in(data).label_source) == (1, "none: no array of labels")


def test_whole_floats_are_the_same_labels_as_integers(tmp_path: Path) -> None:
    for name, labels in (("a", LABELS), ("b", LABELS.astype(float))):
        np.savez(tmp_path / f"{name}.npz", images=pixels(), labels=labels)
    one, two = (opened("npz", tmp_path / f"{name}.npz") for name in "ab")
    assert one.fingerprint == two.fingerprint and two.classes == 3


def test_pickled_labels_are_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(), labels=np.array([{}] * 8, dtype=object))
    with pytest.raises(UserError, match=r"a\.npz is not a readable \.npz file of plain arrays"):
        opened("npz", tmp_path / "a.npz")


def test_numbers_as_folder_names_are_in_numeric_order(tmp_path: Path) -> None:
    images = np.repeat(pixels(), 2, axis=0)[:12]
    folder_of(tmp_path, images, np.arange(12))
    for folder in tmp_path.iterdir():
        folder.rename(tmp_path / folder.name.removeprefix("class"))
    data = opened("folder", tmp_path)
    assert data.class_names == [str(i) for i in range(12)]
    assert all(data.class_names[data.label(i)] == str(data.label(i)) for i in range(12))
