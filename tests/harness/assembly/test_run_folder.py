"""The folder of a run: its id, or the name under which an earlier version began it."""

from __future__ import annotations

from pathlib import Path

from harness.assembly.run_folder import is_named_by, run_folder
from harness.config.spec import RunSpec
from harness.records.record import Record
from harness.records.record_writer import RecordWriter
from tests.support.runs import tiny


def begun(folder: Path, spec: RunSpec, step: int = 1) -> Path:
    with RecordWriter(folder) as record:
        record.write_spec(spec.to_toml())
        record.begin({"threads": 1}, after_step=0)
        record.append({"kind": "train", "step": step, "images": 0, "loss": 1.0})
    return folder


def test_new_run_is_named_by_its_trajectory(tmp_path: Path) -> None:
    assert run_folder(tmp_path, tiny()) == tmp_path / tiny().id
    assert run_folder(tmp_path / "absent", tiny("eval.samples=40", "train.steps=7")).name == tiny().id


def test_folder_of_an_earlier_version_is_continued(tmp_path: Path) -> None:
    old = begun(tmp_path / tiny().legacy_id, tiny())
    for later in (tiny(), tiny("train.steps=99"), tiny("eval.guidance=2.0"), tiny("eval.samples=40")):
        assert run_folder(tmp_path, later) == old
    for other in (tiny("seed=1"), tiny("train.learning_rate=2e-3"), tiny("method.name=self_flow")):
        assert run_folder(tmp_path, other) == tmp_path / other.id


def test_exact_folder_is_preferred_to_one_of_the_same_trajectory(tmp_path: Path) -> None:
    """Version 0.1 kept two evaluations of one training in two folders."""
    specs = [tiny(), tiny("eval.guidance=2.0")]
    folders = [begun(tmp_path / spec.legacy_id, spec, step) for spec, step in zip(specs, (9, 3), strict=True)]
    assert [run_folder(tmp_path, spec) for spec in specs] == folders
    assert run_folder(tmp_path, tiny("eval.guidance=3.0")) == folders[0]


def test_copied_folder_is_not_the_run_that_it_names(tmp_path: Path) -> None:
    copy = begun(tmp_path / "copy", tiny())
    environment = copy / "environment.json"
    environment.write_text(environment.read_text().replace('"copy"', f'"{tiny().id}"'))
    assert not is_named_by(copy, tiny()) and run_folder(tmp_path, tiny("train.steps=99")).name == tiny().id


def test_extended_folder_of_an_earlier_version_keeps_its_name(tmp_path: Path) -> None:
    old = begun(tmp_path / tiny().legacy_id, tiny())
    longer = tiny("train.steps=99")
    (old / "chain.jsonl").unlink()
    (old / "spec.toml").write_text(longer.to_toml())
    assert old.name not in (longer.id, longer.legacy_id) and is_named_by(old, longer)
    assert Record(run_folder(tmp_path, longer)).id == old.name
