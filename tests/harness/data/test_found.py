"""The content of a data set is stated before a run and stored in its record."""

from __future__ import annotations

from pathlib import Path

from harness.config.spec import DataSpec
from harness.data.found import found_in
from harness.data.open import open_dataset
from tests.harness.data.pictures import folder_of, opened, pixels


def test_line_and_row_state_samples_classes_source_and_skipped_files(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", pixels())
    folder_of(tmp_path / "val", pixels()[:4], pixels()[:4, 0, 0, 0] * 0)
    (tmp_path / ".DS_Store").touch()
    found = found_in(opened("folder", tmp_path))
    assert found.line() == (
        "8 samples, 3 classes: class0 3, class1 2, class2 3 (label source: class folders of train); "
        "skipped hidden or left by programs: 1 (.DS_Store); "
        "outside of the split train: 4 (val/class0/000.png, ...)"
    )
    row = found.row()
    assert (row["files"], row["samples"], row["shape"]) == (8, 8, (3, 8, 8))
    assert row["classes"] == {"class0": 3, "class1": 2, "class2": 3}
    assert [skipped["files"] for skipped in row["skipped"]] == [1, 4]


def test_counts_of_generated_data_are_those_of_its_samples() -> None:
    data = open_dataset(DataSpec(name="digits"))
    counts = [count for _, count in found_in(data).classes]
    labels = [data.sample(i).label for i in range(len(data))]
    assert counts == [labels.count(label) for label in range(10)]
