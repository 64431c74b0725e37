"""Table of a study's encoders: each is measured once, with the values of `flowrace probe RUN`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.cli.probe import probe
from harness.errors import UserError
from harness.probing import layers as probing
from harness.probing.encoder_table import entry, is_study, study_of
from harness.probing.layers import Row
from metrics import Value
from tests.support.runs import tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")

RUNS = (
    ("method.name=flow",),
    ("method.name=repa", "method.encoder.name=random:tiny"),
    ("method.name=repa", "method.encoder.name=random:small"),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for overrides in RUNS:
        trained(tiny(*overrides, "train.steps=4", "eval.every=4"), folder)
    return folder


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    return shutil.copytree(study, tmp_path / "study")


def table_of(path: Path, *words: str) -> dict[str, Any]:
    result = CliRunner().invoke(probe, [str(path), "--json", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def control_of(study: Path) -> Path:
    return next(path.parent for path in study.glob("*/spec.toml") if 'name = "flow"' in path.read_text())


def test_encoder_values_equal_those_of_the_probed_control(copy: Path) -> None:
    table = table_of(copy, "--samples", "120")
    assert table == json.loads((copy / "encoders.json").read_text())
    assert list(table["encoders"]) == ["random:small", "random:tiny"]
    control = control_of(copy)
    assert table["protocol"]["control"] == f"{control.name}/step-00000004"
    for name, found in table["encoders"].items():
        rows = table_of(control, "--samples", "120", "--encoder", name)["rows"]
        best = max(rows[1:], key=lambda row: row["cknna"]["mean"])
        assert (found["accuracy"], found["local_distant"]) == (rows[0]["accuracy"], rows[0]["local_distant"])
        assert (found["cknna"], found["cka"], found["layer"]) == (best["cknna"], best["cka"], best["name"])


def test_repeated_command_measures_only_missing_encoders(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It also resumes after one of two encoders; another protocol replaces the table."""
    first = table_of(copy, "--samples", "40", "--encoder", "random:small")
    assert list(first["encoders"]) == ["random:small"]
    measured = []
    real = probing.probe
    monkeypatch.setattr(
        "harness.probing.encoder_table.probe",
        lambda *a, **k: measured.append(a[3].name) or real(*a, **k),
    )
    both = table_of(copy, "--samples", "40")
    assert (
        measured == ["random:tiny"] and both["encoders"]["random:small"] == first["encoders"]["random:small"]
    )
    assert table_of(copy, "--samples", "40") == both and measured == ["random:tiny"]
    table_of(copy, "--samples", "30")
    assert measured == ["random:tiny", "random:small", "random:tiny"]


def test_concurrent_commands_lose_no_row(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one encoder is measured, another command measures and writes the other."""
    real = probing.probe

    def with_second_command(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr("harness.probing.encoder_table.probe", real)
        table_of(copy, "--samples", "40", "--encoder", "random:tiny")
        return real(*args, **options)

    monkeypatch.setattr("harness.probing.encoder_table.probe", with_second_command)
    both = table_of(copy, "--samples", "40", "--encoder", "random:small")
    assert set(both["encoders"]) == {"random:small", "random:tiny"}
    assert json.loads((copy / "encoders.json").read_text()) == both


def test_error_names_the_table_when_the_disk_is_full(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.files.json_table.write_atomic", full)
    result = CliRunner().invoke(probe, [str(copy), "--samples", "40"])
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == f"cannot write {copy / 'encoders.json'}: No space left on device"


def test_training_field_cannot_be_overridden(copy: Path) -> None:
    result = CliRunner().invoke(probe, [str(copy), "--set", "backbone.size=nano"])
    assert isinstance(result.exception, UserError)
    assert "--set backbone.size=nano: only eval.*, runtime.* and data.root can be changed" in str(
        result.exception
    )


def test_encoder_is_measured_again_when_weights_differ(copy: Path) -> None:
    table = table_of(copy, "--samples", "40")
    table["encoders"]["random:tiny"] |= {"sha256": "0" * 64, "params": 1}
    (copy / "encoders.json").write_text(json.dumps(table))
    assert table_of(copy, "--samples", "40")["encoders"]["random:tiny"]["params"] > 1


def test_agreement_is_not_measured_without_a_control(copy: Path) -> None:
    shutil.rmtree(control_of(copy))
    table = table_of(copy, "--samples", "40")
    assert table["protocol"]["control"] is None
    assert all(row["cknna"] is None and row["layer"] is None for row in table["encoders"].values())
    assert all(row["accuracy"]["n"] == 40 for row in table["encoders"].values())


def test_text_output_names_encoders_and_best_layer(copy: Path) -> None:
    result = CliRunner().invoke(probe, [str(copy), "--samples", "40"], catch_exceptions=False)
    assert "random:tiny" in result.output and "CKNNA and CKA with the best layer of" in result.output


def test_record_has_the_number_of_trained_parameters(study: Path) -> None:
    from harness.records.record import Record
    from harness.train.trained_run import model_of_run, spec_of_run

    run = control_of(study)
    _, model, _ = model_of_run(run, spec_of_run(run, ()), None)
    assert Record(run).environment[0]["params"] == sum(p.numel() for p in model.parameters())


def test_entry_chooses_the_best_layer_by_cknna() -> None:
    encoder = Row("e", Value(0.5), Value(1.0), Value(1.0), Value(0.1), Value(0.2))
    low, high = (
        Row(name, None, Value(near), Value(alike), Value(0), Value(0))
        for name, near, alike in (("layer 1", 0.1, 0.9), ("layer 2", 0.3, 0.2))
    )
    assert (
        entry([encoder, low, high])["layer"] == "layer 2"
        and entry([encoder, low, high])["cka"]["mean"] == 0.2
    )


def test_is_study_is_true_for_a_folder_of_runs_only(copy: Path, tmp_path: Path) -> None:
    assert is_study(copy) and not is_study(control_of(copy))
    assert not is_study(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert not is_study(tmp_path / "empty")


@pytest.mark.parametrize("words", [("--step", "4"), ("--weights", "w.safetensors")])
def test_options_for_one_run_are_rejected(copy: Path, words: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=f"{words[0]} {words[1]} applies to one run"):
        table_of(copy, *words)


def test_study_is_rejected_when_data_differ_or_checkpoints_are_missing(copy: Path) -> None:
    spec = control_of(copy) / "spec.toml"
    before = spec.read_text()
    # A record of a version without chains.
    (spec.parent / "chain.jsonl").unlink()
    environment = spec.parent / "environment.json"
    environment.write_text(environment.read_text().replace('"chain"', '"older"'))
    spec.write_text(before.replace("held_out = 0.5", "held_out = 0.25"))
    with pytest.raises(UserError, match="2 settings of data"):
        study_of(copy)
    spec.write_text(before)
    for folder in copy.glob("*/checkpoints"):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match="no run has a checkpoint yet"):
        study_of(copy)


def test_error_names_the_table_when_it_is_invalid(copy: Path) -> None:
    (copy / "encoders.json").write_text("{")
    with pytest.raises(UserError, match="not a table of encoders; move it away"):
        table_of(copy, "--samples", "40")
