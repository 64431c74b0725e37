"""Fields of the source that `flowrace data encode` accepts and rejects."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.main import cli
from harness.config.data_spec import DataSpec
from harness.data.open import open_dataset
from harness.errors import UserError
from tests.support.encoded import encode


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("flip=true", "data.flip = true applies to training .*give --flip"),
        ("held_out=0.3", "data.held_out = 0.3 applies to training .*leave it out"),
        ("workers=2", "data.workers = 2 applies to training"),
        ("posterior=mean", "data.posterior = mean: data set 'digits' has no such field"),
        ("resolution=32", "data.resolution = 32: data set 'digits' has no such field"),
        ("frames=5", "data.frames = 5: data set 'digits' has no such field"),
        ("name=latents", "latents are already encoded"),
    ],
)
def test_encode_rejects_fields_that_it_does_not_read(tmp_path: Path, field: str, message: str) -> None:
    words = ["digits", "--codec", "identity", "--set", f"data.{field}", "--out", str(tmp_path / "l")]
    result = CliRunner().invoke(cli, ["data", "encode", *words])
    assert isinstance(result.exception, UserError), result.output
    assert re.search(message, str(result.exception)) and not (tmp_path / "l").exists()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("flip=true", "not to the decoder; leave it out"),
        ("held_out=0.3", "data.held_out = 0.3 applies to training .*not to the decoder; give --held-out"),
    ],
)
def test_training_of_a_decoder_names_its_own_options(tmp_path: Path, field: str, message: str) -> None:
    words = ["digits", "--encoder", "local:small", "--set", f"data.{field}", "--out", str(tmp_path / "l")]
    result = CliRunner().invoke(cli, ["data", "rae", *words])
    assert isinstance(result.exception, UserError), result.output
    assert re.search(message, str(result.exception)) and not (tmp_path / "l").exists()


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_bar_of_the_training_of_a_decoder_is_hidden_next_to_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    def bar(total: int, what: str, *, hidden: bool = False) -> None:
        raise UserError(f"hidden: {hidden}")

    monkeypatch.setattr("harness.files.progress.progress_bar", bar)
    words = ["digits", "--encoder", "local:small", "--out", str(tmp_path / "l"), *words]
    result = CliRunner().invoke(cli, ["data", "rae", *words])
    assert str(result.exception) == f"hidden: {'--json' in words}"


def test_encode_reads_one_part_of_a_joint_data_set(tmp_path: Path) -> None:
    """The command is that of docs/guides/modalities.md."""
    fields = ("--set", "data.audio_weight=0", "--set", "data.frames=4", "--rows", "4000")
    encode("bounce", "identity", tmp_path / "l", *fields)
    spec = DataSpec(name="bounce", audio_weight=0.0, frames=4)
    manifest = json.loads((tmp_path / "l" / "latents.json").read_bytes())
    assert manifest["source"]["fingerprint"] == open_dataset(spec).fingerprint
    found = open_dataset(DataSpec(name="latents", root=str(tmp_path / "l")))
    assert found.modality == "video"
    assert [found.label(i) for i in range(9)] == [open_dataset(DataSpec()).sample(i).label for i in range(9)]
