"""Metrics of one evaluation: one pass for all, replicates, noise floors, and metrics that fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import metrics
from harness.backbone.sit import Prediction
from harness.config.evaluation_spec import EvalSpec
from harness.data.open import images, open_dataset, split
from harness.evaluation import evaluator as evaluation
from harness.evaluation.conditions import LabelConditions
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.protocol import digest
from harness.evaluation.result import Result
from harness.flow.sampling import sample_labels
from harness.runtime.random_streams import Streams
from tests.support.runs import tiny, trained
from tests.support.sampling import draw_samples

pytestmark = pytest.mark.usefixtures("quick_networks")

CPU = torch.device("cpu")
LOCAL = tuple(
    f"{value}:local"
    for value in (
        "fd", "fd_infinity", "precision", "recall", "density", "coverage", "cmmd", "is", "memorisation",
    )
)  # fmt: skip
SPEC = EvalSpec(
    samples=120, sampler="heun", sampler_steps=2, batch_size=50,
    metrics=(*LOCAL, "accuracy:local"), replicates=2,
)  # fmt: skip


class NoiseAndLabel(torch.nn.Module):
    """A network whose samples depend on noise and label."""

    def forward(self, x, times, y):
        return Prediction(x * 0.8 + (y[:, None, None, None] - 5) * 0.05, {})


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    dataset = open_dataset(tiny().data)
    sides = split(dataset, 0.2)
    return Evaluator(SPEC, dataset, sides.train, CPU, sides.held_out)


@pytest.fixture(scope="module")
def result(evaluator: Evaluator) -> Result:
    return evaluator(NoiseAndLabel())


def changed_copy(evaluator: Evaluator, **changes) -> Evaluator:
    """Return a copy of a prepared evaluator with other attributes."""
    other = Evaluator.__new__(Evaluator)
    other.__dict__.update(evaluator.__dict__, **changes)
    return other


def test_one_pass_computes_every_metric(evaluator: Evaluator, result: Result) -> None:
    """Replicate 0 equals the metric functions on features that are extracted separately."""
    dataset = open_dataset(tiny().data)
    train = split(dataset, 0.2).train
    extract = evaluator.extractors["local"]
    pixels = draw_samples(NoiseAndLabel(), SPEC, dataset.shape, dataset.classes, CPU)
    fake, real = (extract.outputs(x) for x in (pixels, torch.from_numpy(images(dataset, train)[0])))
    a, b = real["features"].numpy(), fake["features"].numpy()
    labels = sample_labels(SPEC, Streams(0), np.arange(SPEC.samples), dataset.classes)
    moments = metrics.Moments()
    moments.add(a)
    expected = {
        "fd": metrics.frechet_distance(a, b),
        "fd_infinity": metrics.frechet_infinity(moments, b),
        "precision": metrics.precision_recall(a, b).precision,
        "recall": metrics.precision_recall(a, b).recall,
        "density": metrics.density_coverage(a, b).density,
        "coverage": metrics.density_coverage(a, b).coverage,
        "cmmd": metrics.cmmd(a, b),
        "is": metrics.inception_score(fake["logits"].numpy()),
        "memorisation": metrics.memorisation(a, b),
        "accuracy": metrics.class_accuracy(fake["logits"], labels),
    }
    assert result.errors == {} and list(result.metrics) == list(SPEC.metrics)
    for value, wanted in expected.items():
        found = result.metrics[f"{value}:local"]
        assert found.replicates[0] == pytest.approx(float(wanted), rel=1e-4, abs=1e-6), value
        assert found.n == SPEC.samples


def test_interval_over_replicates_is_students_t(result: Result) -> None:
    for name, number in result.metrics.items():
        first, second = number.replicates
        # t(0.975, 1 degree of freedom) * s / sqrt(2)
        half = 12.706204736432095 * abs(first - second) / 2
        assert number.mean == pytest.approx((first + second) / 2)
        assert number.high - number.mean == pytest.approx(half, rel=1e-9, abs=1e-12), name
        assert result.rows[name]["replicates"] == [first, second]
    first, second = result.metrics["fd:local"].replicates
    assert first != second


def test_single_evaluation_equals_the_first_replicate(evaluator: Evaluator, result: Result) -> None:
    alone = changed_copy(evaluator, spec=SPEC.model_copy(update={"replicates": 1}))(NoiseAndLabel())
    for name, number in alone.metrics.items():
        assert number.mean == result.metrics[name].replicates[0]
        assert alone.rows[name] == {"mean": number.mean, "low": None, "high": None, "n": SPEC.samples}
    assert np.array_equal(alone.grid, result.grid)


def test_replicates_are_consecutive_samples_of_one_stream(evaluator: Evaluator, result: Result) -> None:
    """Replicate 2 of 120 samples is the second half of one evaluation of 240."""
    dataset = open_dataset(tiny().data)
    twice = SPEC.model_copy(update={"samples": 2 * SPEC.samples})
    pixels = draw_samples(NoiseAndLabel(), twice, dataset.shape, dataset.classes, CPU)
    b = evaluator.extractors["local"](pixels[SPEC.samples :])
    a = evaluator.extractors["local"](torch.from_numpy(images(dataset, split(dataset, 0.2).train)[0]))
    expected = metrics.frechet_distance(a, b)
    assert result.metrics["fd:local"].replicates[1] == pytest.approx(float(expected), rel=1e-4)


def test_noise_floors_compare_real_samples_with_real_ones(evaluator: Evaluator, result: Result) -> None:
    dataset = open_dataset(tiny().data)
    sides = split(dataset, 0.2)
    a, b = (evaluator.extractors["local"](torch.from_numpy(images(dataset, side)[0])) for side in sides)
    n = min(SPEC.samples, len(b))
    floor = evaluator.noise_floor["fd:local"]
    expected = float(metrics.frechet_distance(a, b[:n]))
    assert set(evaluator.noise_floor) == {"fd:local"}
    assert floor["held_out"] == {"mean": pytest.approx(expected, rel=1e-4), "n": n, "n_real": len(a)}
    halves = floor["train_halves"]
    assert (halves["n"], halves["n_real"]) == (SPEC.samples, len(a) - SPEC.samples)
    assert 0 < halves["mean"] < 0.5 * result.metrics["fd:local"].mean


def test_metrics_fail_by_name_when_features_are_not_finite(evaluator: Evaluator) -> None:
    def network(x):
        return {"features": torch.full((len(x), 64), torch.nan), "logits": torch.zeros(len(x), 10)}

    broken = replace(evaluator.extractors["local"], network=network)
    found = changed_copy(evaluator, extractors={"local": broken})(NoiseAndLabel())
    assert found.metrics == {} and set(found.errors) == set(SPEC.metrics)
    assert all("not finite" in reason for reason in found.errors.values())


def test_failed_metric_does_not_affect_the_others(evaluator: Evaluator) -> None:
    """Accuracy fails for labels of an eleventh class, which the network does not have."""
    generated = replace(evaluator.generated, conditions=LabelConditions(SPEC, 11))
    found = changed_copy(evaluator, generated=generated)(NoiseAndLabel())
    assert (
        set(found.errors) == {"accuracy:local"}
        and "label 10 is out of range" in found.errors["accuracy:local"]
    )
    assert set(found.metrics) == set(LOCAL)


def test_run_continues_when_a_metric_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metric fails at step 6 and succeeds at step 12; the record has both events."""
    calls, compute = [], evaluation._compute

    def fail_once(metric, real, fake):
        calls.append(metric)
        return ({}, "cannot be computed") if len(calls) == 1 else compute(metric, real, fake)

    monkeypatch.setattr(evaluation, "_compute", fail_once)
    record = trained(tiny(), tmp_path)
    first, last = record.of("eval")
    assert record.status == "done" and (first["step"], last["step"]) == (6, 12)
    assert first["metrics"] == {} and first["errors"] == {"fd:local": "cannot be computed"}
    assert set(last["metrics"]) == {"fd:local"} and "errors" not in last
    about = record.environment[-1]["evaluation"]
    assert about["hash"] == digest(about["protocol"]) == last["protocol"] and about["aligned"] == []
    recorded = about["protocol"]
    fields = [recorded[name] for name in ("n_fake", "sampler", "sampler_steps", "guidance")]
    assert fields == [24, "heun", 2, 1.0]
    assert recorded["extractors"]["local"].keys() == {"sha256", "dim", "preprocessing"}
    assert about["floor"]["fd:local"]["train_halves"]["n"] == 24
