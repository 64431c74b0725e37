"""Metric checks: one function, called with or without the numbers of samples."""

from __future__ import annotations

import pytest

from harness.config.evaluation_spec import EvalSpec
from harness.errors import UserError
from harness.evaluation.checks import check_arms, check_metrics


def spec(*metrics: str, samples: int = 100) -> EvalSpec:
    return EvalSpec(metrics=metrics, samples=samples)


def test_check_metrics_returns_each_metric_with_its_network() -> None:
    found = check_metrics(spec("fid", "kid:local", "cmmd"), object(), "image")
    assert [(m.value, m.extractor) for m in found] == [
        ("fd", "inception"),
        ("kid", "local"),
        ("cmmd", "clip-vit-l-336"),
    ]


@pytest.mark.parametrize(
    ("metric", "samples", "real", "message"),
    [
        ("kid:local", 30, 5000, "draws subsets of 1000, but one side has 30 samples"),
        ("kid:local", 5000, 30, "draws subsets of 1000, but one side has 30 samples"),
        ("fd_infinity:local", 99, 5000, "needs at least 100 samples, but eval.samples = 99"),
    ],
)
def test_check_metrics_rejects_too_few_samples_when_their_number_is_known(
    metric: str, samples: int, real: int, message: str
) -> None:
    check_metrics(spec(metric), object(), "image")
    with pytest.raises(UserError, match=message):
        check_metrics(spec(metric), object(), "image", samples=samples, real=real)


def test_check_arms_rejects_an_arm_with_too_few_samples() -> None:
    check_arms([spec("fd_infinity:local")], [], "study s")
    with pytest.raises(UserError, match="needs at least 100 samples"):
        check_arms([spec("fd:local", samples=9), spec("fd_infinity:local", samples=9)], [], "study s")


def test_check_arms_rejects_an_encoder_of_another_arm_as_the_only_metric() -> None:
    with pytest.raises(UserError, match=r"study s: 'fd:dinov2-s' in eval\.metrics"):
        check_arms([spec("fd:dinov2-s")], ["timm:vit_small_patch14_dinov2"], "study s")
