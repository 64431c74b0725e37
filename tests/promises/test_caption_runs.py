"""Runs on captions keep the promises of runs on labels: the same bits, however they are started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from harness.cli.sample import sample as sample_command
from harness.config.spec import RunSpec
from harness.errors import UserError
from harness.records.checkpoint_files import checkpoints
from harness.records.record import Record
from harness.text.captions import RunCaptions
from harness.train.loop import train
from harness.train.progress import Quiet
from harness.train.start import check_same_weights, weights_at_start
from metrics.files.hashing import sha256_of
from tests.support.runs import tiny, torchrun, trained

pytest.importorskip("harness.backbone.mmdit")
pytestmark = pytest.mark.usefixtures("quick_networks")
TEXT = (
    "data.name=prompts", "data.held_out=0.1", "backbone.kind=mmdit", "backbone.patch=8",
    "backbone.initial=released", "text.encoder=random:text", "text.length=16", "train.steps=6",
    "train.checkpoint_every=3", "eval.every=6", "eval.grid=4",
)  # fmt: skip


def text_spec(*overrides: str) -> RunSpec:
    return tiny(*TEXT, *overrides)


def weights(record: Record) -> str:
    return sha256_of(checkpoints(record.path / "checkpoints")[-1])


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory, quick_networks: None) -> Record:
    return trained(text_spec(), tmp_path_factory.mktemp("text"))


def test_record_states_captions_encoder_and_protocol(record: Record) -> None:
    (start,) = (start for start in record.environment if "text" in start)
    text, protocol = start["text"], start["evaluation"]["protocol"]
    assert text["name"] == "random:text" and text["captions"] > text["distinct"] > 5000
    assert text["one_off_flops"] == text["flops"] * text["distinct"]
    assert start["data"]["captions"]["captions"] == text["captions"]
    assert protocol["captions"]["side"] == "held out" and protocol["captions"]["samples"] > 400
    # Arms with different text encoders show the same captions, so their values are comparable.
    assert text["sha256"] not in json.dumps(protocol)
    picture = Image.open(record.path / "samples" / "step-00000006.png")
    captions = json.loads(picture.info["captions"])
    assert len(captions) == 4 and all(" " in caption for caption in captions)


@pytest.mark.parametrize(
    "how",
    [
        (),
        pytest.param(("data.workers=1",), marks=pytest.mark.slow),
        pytest.param(("train.accumulate=2",), marks=pytest.mark.slow),
    ],
)
def test_resumed_run_ends_with_the_same_bits(record: Record, tmp_path: Path, how: tuple[str, ...]) -> None:
    trained(text_spec("train.steps=3", *how), tmp_path)
    resumed = trained(text_spec(*how), tmp_path)
    if "train.accumulate=2" in how:
        once = trained(text_spec(*how), tmp_path / "once")
        assert weights(resumed) == weights(once)
    else:
        assert weights(resumed) == weights(record)


def test_run_whose_captions_are_all_dropped_is_the_unconditional_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = trained(text_spec("train.label_drop=1.0"), tmp_path / "dropped")
    monkeypatch.setattr(RunCaptions, "chosen", lambda self, place, draw: self.empty.expand(len(place)))
    unconditional = trained(text_spec("train.label_drop=0.0"), tmp_path / "unconditional")
    tensors = [dict(load_tensors(one)) for one in (dropped, unconditional)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(np.array_equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def load_tensors(record: Record) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(checkpoints(record.path / "checkpoints")[-1])


def test_other_weights_of_the_text_encoder_are_rejected(record: Record) -> None:
    found = {name: value for name, value in weights_at_start(record).items() if name.startswith("text")}
    assert list(found) == ["text encoder 'random:text'"]
    changed = dict.fromkeys(found, "0" * 64)
    with pytest.raises(UserError, match=r"text encoder 'random:text' have changed .*set text\.weights"):
        check_same_weights(record, changed, print)


def test_later_evaluation_of_a_run_shows_the_same_captions(tmp_path: Path) -> None:
    spec = text_spec()
    path = train(spec, tmp_path, Quiet(), [spec.eval.model_copy(update={"guidance": 2.0})])
    record = Record(path)
    assert sorted(one.conditions.guidance for one in record.evaluations) == [1.0, 2.0]
    grids = sorted((path / "samples").glob("step-00000006*.png"))
    captions = [Image.open(file).info["captions"] for file in grids]
    assert len(captions) == 2 and captions[0] == captions[1]
    assert grids[0].read_bytes() != grids[1].read_bytes()


def drawn(record: Record, output: Path, *words: str, n: int = 4) -> np.ndarray:
    call = [str(record.path), "-n", str(n), "--npz", str(output), *words]
    CliRunner().invoke(sample_command, call, catch_exceptions=False)
    with np.load(output, allow_pickle=False) as content:
        assert content.files == ["arr_0"] or "--prompt" not in words
        return content["arr_0"]


def test_samples_depend_on_noise_and_on_prompt(record: Record, tmp_path: Path) -> None:
    first = drawn(record, tmp_path / "a.npz", "--prompt", "a small red seven")
    assert first.shape == (4, 32, 32, 3) and len(np.unique(first, axis=0)) == 4
    again = drawn(record, tmp_path / "b.npz", "--prompt", "a small red seven")
    np.testing.assert_array_equal(first, again)
    other = drawn(record, tmp_path / "c.npz", "--prompt", "three large blue ones")
    assert all((a != b).any() for a, b in zip(first, other, strict=True))


def test_prompts_of_a_file_take_turns_and_are_in_the_picture(record: Record, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a small red seven\n\n  家 \n", encoding="utf-8")
    one = drawn(record, tmp_path / "one.npz", "--prompt", "a small red seven")
    both = drawn(record, tmp_path / "both.npz", "--prompts", str(file))
    np.testing.assert_allclose(both[::2].astype(int), one[::2], atol=1)
    assert (both[1::2] != one[1::2]).any()
    words = [str(record.path), "-n", "3", "-o", str(tmp_path / "a.png"), "--prompts", str(file)]
    assert CliRunner().invoke(sample_command, words, catch_exceptions=False).exit_code == 0
    captions = json.loads(Image.open(tmp_path / "a.png").info["captions"])
    assert captions == ["a small red seven", "家", "a small red seven"]


def test_samples_without_prompts_show_the_captions_of_evaluations(record: Record, tmp_path: Path) -> None:
    words = [str(record.path), "-n", "4", "-o", str(tmp_path / "a.png")]
    assert CliRunner().invoke(sample_command, words, catch_exceptions=False).exit_code == 0
    grids = [record.path / "samples" / "step-00000006.png", tmp_path / "a.png"]
    captions = [json.loads(Image.open(file).info["captions"]) for file in grids]
    assert captions[0] == captions[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--classes", "3"), r"this run is conditioned on text, not on class labels; give --prompt"),
        (("--prompts", "empty.txt"), r"the file has no prompt; write one a line"),
        (("--prompts", "absent.txt"), r"cannot read absent\.txt: No such file"),
    ],
)
def test_invalid_prompts_are_one_sentence(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match=sentence):
        drawn(record, tmp_path / "a.npz", *words)


def test_film_of_pictures_is_rejected(record: Record, tmp_path: Path) -> None:
    words = [str(record.path), "-o", str(tmp_path / "a.mp4"), "--prompt", "a red seven"]
    with pytest.raises(UserError, match=r"holds videos with their sound, but these samples are image"):
        CliRunner().invoke(sample_command, words, catch_exceptions=False)


def test_prompt_of_a_run_on_labels_is_rejected(tmp_path: Path) -> None:
    labelled = trained(tiny("train.steps=2", "eval.every=2"), tmp_path)
    with pytest.raises(UserError, match=r"conditioned on class labels, not on text; give --classes"):
        drawn(labelled, tmp_path / "a.npz", "--prompt", "a red seven")


@pytest.mark.slow
def test_two_processes_train_the_same_run(record: Record, tmp_path: Path) -> None:
    done = torchrun("digits", (*tiny_words(), *TEXT, "runtime.device=cpu"), tmp_path)
    assert done.returncode == 0, done.stderr
    two = Record(next(path for path in tmp_path.iterdir() if path.is_dir()))
    first, second = load_tensors(record), load_tensors(two)
    assert all(np.allclose(first[name], second[name], atol=1e-5) for name in first)


def tiny_words() -> tuple[str, ...]:
    from tests.support.runs import TINY

    return TINY
