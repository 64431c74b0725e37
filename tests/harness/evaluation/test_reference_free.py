"""Metrics of samples themselves: real samples score as they should, spoilt ones do not, and what has no truth
is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from harness.assembly.resolve import load_spec
from harness.data.open import images, open_dataset, split
from harness.errors import UserError
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.metric_names import TRUTHS, check_truth
from harness.evaluation.reference_free import ready
from metrics.domain.video_consistency import agreement
from tests.support.modal import modal
from tests.support.runs import tiny, trained

CPU = torch.device("cpu")
WORDS = ("data.name=words", "backbone.patch=4", "eval.metrics=['cer:reader']")
SPECS = {"dynamics": ("video",), "agreement:local": ("video",), "drift:local": ("video",), "sync": ("joint",)}
REAL_AND_SPOILT = {
    "dynamics": (lambda x: x < 0.01, lambda x: x > 1),
    "agreement:local": (lambda x: x > 0.9, lambda x: x < 0.2),
    "drift:local": (lambda x: x < 0.5, lambda x: 0.9 < x < 1.1),
    "sync": (lambda x: x > 0.99, lambda x: x < 0.5),
    "cer:reader": (lambda x: x < 0.03, lambda x: x > 0.8),
    "cer:tesseract": (lambda x: x < 0.1, lambda x: x > 0.8),
}


def evaluator(metric: str, samples: int = 60) -> Evaluator:
    eval_spec = (f"eval.metrics=['{metric}']", f"eval.samples={samples}", "data.held_out=0.2")
    if metric.startswith("cer"):
        spec = tiny(*WORDS, *eval_spec)
    else:
        spec = modal(*SPECS[metric], *eval_spec, "data.frames=8")
    dataset = open_dataset(spec.data)
    sides = split(dataset, spec.data.held_out)
    return Evaluator(spec.eval, dataset, sides.train, CPU, sides.held_out)


@pytest.mark.parametrize("name", [name for name in TRUTHS if name != "cer:tesseract"])
def test_the_floor_tells_real_samples_from_spoilt_ones(name: str) -> None:
    found = evaluator(name)
    real, spoilt = REAL_AND_SPOILT[name]
    assert real(found.floor[name]["held_out"]["mean"]) and spoilt(found.floor[name]["spoilt"]["mean"])
    assert set(found.about["truths"]) == {name}


def test_too_few_samples_are_refused_before_a_race() -> None:
    with pytest.raises(
        UserError, match=r"'drift:local' has no value for fewer than 3 samples, and eval\.samples = 2"
    ):
        evaluator("drift:local", samples=2)


def test_held_out_samples_that_have_no_value_make_no_floor() -> None:
    """Two videos are too few to tell how far videos are apart; what is generated can still be measured."""
    spec = modal(
        "video", "eval.metrics=['drift:local', 'agreement:local']", "eval.samples=9", "data.frames=4"
    )
    dataset = open_dataset(spec.data)
    sides = split(dataset, 0.2)
    found = Evaluator(spec.eval, dataset, sides.train, CPU, sides.held_out[:2])
    assert set(found.floor) == {"agreement:local"} and found.floor["agreement:local"]["held_out"]["n"] == 2
    x, labels = images(dataset, sides.held_out[:9])
    (drift,) = (truth for truth in found.truths if truth.name == "drift:local")
    assert drift(torch.from_numpy(x), found.shapes, torch.from_numpy(labels)) > 0


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")
def test_tesseract_is_a_reader_of_a_race() -> None:
    found = evaluator("cer:tesseract", samples=20)
    real, spoilt = REAL_AND_SPOILT["cer:tesseract"]
    assert real(found.floor["cer:tesseract"]["held_out"]["mean"])
    assert spoilt(found.floor["cer:tesseract"]["spoilt"]["mean"])
    assert found.about["truths"]["cer:tesseract"]["version"].startswith("tesseract")


def test_without_tesseract_the_trained_reader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"apt install tesseract-ocr, or take cer:reader"):
        evaluator("cer:tesseract")


def test_agreement_is_that_of_the_classifier_on_each_frame() -> None:
    found = evaluator("agreement:local")
    spec = modal("video", "data.frames=8", "data.held_out=0.2")
    dataset = open_dataset(spec.data)
    x, labels = images(dataset, split(dataset, 0.2).held_out[:9])
    (truth,) = found.truths
    classifier = ready("drift:local", dataset, split(dataset, 0.2).train, CPU).about["sha256"]
    assert truth.about["sha256"] == classifier
    (value,) = (truth(torch.from_numpy(x), found.shapes, torch.from_numpy(labels)),)
    shuffled = truth(torch.from_numpy(x)[:, :, torch.randperm(8)], found.shapes, torch.from_numpy(labels))
    assert value == shuffled  # the order of frames is nothing to it
    one = agreement(np.zeros((9, 8), int))
    assert value <= one == 1


def test_a_race_records_them_with_their_interval(tmp_path_factory: pytest.TempPathFactory) -> None:
    record = trained(modal("video", "eval.metrics=['dynamics']"), tmp_path_factory.mktemp("run"))
    for event in record.of("eval"):
        number = event["metrics"]["dynamics"]
        assert number["low"] < number["mean"] < number["high"] and "replicates" not in number
    (start, *_) = record.environment
    assert set(start["evaluation"]["floor"]["dynamics"]) == {"held_out", "spoilt"}


@pytest.mark.parametrize("name", list(TRUTHS))
def test_what_has_no_such_truth_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(UserError, match=rf"eval.metrics '{name}' is of data .*leave it out"):
        load_spec("digits", [f"eval.metrics=['{name}']"])


def test_a_part_of_a_joint_sample_has_no_partner() -> None:
    with pytest.raises(UserError, match="'sync' is of data in which impacts are seen and heard"):
        modal("joint", "eval.metrics=['sync']", "data.audio_weight=0", "data.video_weight=1")
    check_truth("agreement:local", object(), "video")


def test_a_misspelt_one_is_met_by_its_neighbour() -> None:
    with pytest.raises(UserError, match="Did you mean 'dynamics'"):
        load_spec("moving-digits", ["eval.metrics=['dynamic']"])
