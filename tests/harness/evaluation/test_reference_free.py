"""Reference-free metrics: real samples score well, spoilt ones do not, and other data are rejected."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.assembly.resolve import load_spec
from harness.config.evaluation_spec import EvalSpec
from harness.data.open import images, open_dataset, split
from harness.errors import UserError
from harness.evaluation.checks import check_metrics
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.metric_table import REFERENCE_FREE
from harness.evaluation.reference_free import prepared
from metrics.domain.video_consistency import agreement
from tests.support.modal import modal
from tests.support.quick import quickly_trained
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

QUICK = ("dynamics", "sync")
"""Metrics without a network to train."""


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[None]:
    with quickly_trained(tmp_path / "quick"):
        yield


def evaluator(metric: str, samples: int = 60) -> Evaluator:
    eval_spec = (f"eval.metrics=['{metric}']", f"eval.samples={samples}", "data.held_out=0.2")
    if metric.startswith("cer"):
        spec = tiny(*WORDS, *eval_spec)
    else:
        spec = modal(*SPECS[metric], *eval_spec, "data.frames=8")
    dataset = open_dataset(spec.data)
    sides = split(dataset, spec.data.held_out)
    return Evaluator(spec.eval, dataset, sides.train, CPU, sides.held_out)


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in REAL_AND_SPOILT
        if name != "cer:tesseract"
    ],
)
def test_noise_floor_separates_real_from_spoilt_samples(name: str) -> None:
    found = evaluator(name)
    real, spoilt = REAL_AND_SPOILT[name]
    assert real(found.noise_floor[name]["held_out"]["mean"]) and spoilt(
        found.noise_floor[name]["spoilt"]["mean"]
    )
    assert set(found.about["truths"]) == {name}


def test_evaluator_rejects_too_few_samples() -> None:
    with pytest.raises(UserError, match=r"'drift:local' needs at least 3 samples, but eval\.samples = 2"):
        evaluator("drift:local", samples=2)


@pytest.mark.slow
def test_noise_floor_is_left_out_when_it_is_undefined() -> None:
    """Two held-out videos are too few for the variation between videos, but not for generated samples."""
    spec = modal(
        "video", "eval.metrics=['drift:local', 'agreement:local']", "eval.samples=9", "data.frames=4"
    )
    dataset = open_dataset(spec.data)
    sides = split(dataset, 0.2)
    found = Evaluator(spec.eval, dataset, sides.train, CPU, sides.held_out[:2])
    assert (
        set(found.noise_floor) == {"agreement:local"}
        and found.noise_floor["agreement:local"]["held_out"]["n"] == 2
    )
    x, labels = images(dataset, sides.held_out[:9])
    (drift,) = (metric for metric in found.reference_free if metric.name == "drift:local")
    assert drift(torch.from_numpy(x), found.shapes, torch.from_numpy(labels)).mean > 0


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")
def test_tesseract_separates_real_from_spoilt_samples() -> None:
    found = evaluator("cer:tesseract", samples=20)
    real, spoilt = REAL_AND_SPOILT["cer:tesseract"]
    assert real(found.noise_floor["cer:tesseract"]["held_out"]["mean"])
    assert spoilt(found.noise_floor["cer:tesseract"]["spoilt"]["mean"])
    assert found.about["truths"]["cer:tesseract"]["version"].startswith("tesseract")


def test_missing_tesseract_error_names_the_trained_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"apt install tesseract-ocr, or use cer:reader"):
        evaluator("cer:tesseract")


@pytest.mark.usefixtures("quick")
def test_agreement_does_not_depend_on_the_order_of_frames() -> None:
    found = evaluator("agreement:local")
    spec = modal("video", "data.frames=8", "data.held_out=0.2")
    dataset = open_dataset(spec.data)
    x, labels = images(dataset, split(dataset, 0.2).held_out[:9])
    (metric,) = found.reference_free
    classifier = prepared("drift:local", dataset, split(dataset, 0.2).train, CPU).about["sha256"]
    assert metric.about["sha256"] == classifier
    value = metric(torch.from_numpy(x), found.shapes, torch.from_numpy(labels))
    shuffled = metric(torch.from_numpy(x)[:, :, torch.randperm(8)], found.shapes, torch.from_numpy(labels))
    assert value == shuffled
    perfect = agreement(np.zeros((9, 8), int))
    assert value.mean <= perfect.mean == 1


def test_run_records_reference_free_metrics_with_their_interval(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    record = trained(modal("video", "eval.metrics=['dynamics']"), tmp_path_factory.mktemp("run"))
    for event in record.of("eval"):
        number = event["metrics"]["dynamics"]
        assert number["low"] < number["mean"] < number["high"] and "replicates" not in number
    (start, *_) = record.environment
    assert set(start["evaluation"]["floor"]["dynamics"]) == {"held_out", "spoilt"}


@pytest.mark.parametrize("name", list(REFERENCE_FREE))
def test_reference_free_metric_is_rejected_when_data_lack_its_attribute(name: str) -> None:
    with pytest.raises(UserError, match=rf"eval.metrics '{name}' needs data .*remove it"):
        load_spec("digits", [f"eval.metrics=['{name}']"])


def test_sync_is_rejected_when_one_part_is_not_generated() -> None:
    with pytest.raises(UserError, match="'sync' needs data with visible and audible impacts"):
        modal("joint", "eval.metrics=['sync']", "data.audio_weight=0", "data.video_weight=1")
    check_metrics(EvalSpec(metrics=("agreement:local",)), object(), "video")


def test_misspelt_metric_error_suggests_the_nearest_name() -> None:
    with pytest.raises(UserError, match="Did you mean 'dynamics'"):
        load_spec("moving-digits", ["eval.metrics=['dynamic']"])
