"""`flowrace cost`, against sums on paper and the numbers of a real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from harness.assembly.resolve import load_spec
from harness.backbone.sit import Prediction
from harness.cli.main import cli
from harness.config.evaluation_spec import EvalSpec
from harness.costs.estimate import evaluation_flops, guided_passes, passes
from harness.errors import UserError
from harness.flow.sampling import Sampling, draw_pixels
from tests.support.paper_flops import S2, forward_flops
from tests.support.runs import tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")
FLOW = (
    "cost",
    "imagenet256",
    "--set",
    "backbone.size=S",
    "--set",
    "backbone.learn_sigma=false",
    "--set",
    "method.name=flow",
)


def estimated(*words: str) -> dict:
    """Return the JSON that the command prints."""
    return json.loads(CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False).output)


def test_time_is_flops_over_speed_and_devices() -> None:
    one, eight = (estimated(*FLOW, "--flops-per-second", "2e14", "--devices", n) for n in ("1", "8"))
    training, evaluation = one["flops"]["training"], one["flops"]["evaluation"]
    assert one["seconds"]["training"] == pytest.approx(training / 2e14)
    assert eight["seconds"]["training"] == pytest.approx(training / 16e14)
    assert evaluation == 8 * 50_000 * 250 * forward_flops(S2, 1, 12)
    memory = [found["memory_bytes_per_device"] for found in (one, eight)]
    assert (
        memory[0]["weights"] == memory[1]["weights"]
        and memory[0]["activations"] > 7 * memory[1]["activations"]
    )


def test_time_is_unknown_without_a_speed() -> None:
    assert estimated(*FLOW)["seconds"] == {"step": None, "training": None, "evaluation": None}
    result = CliRunner().invoke(cli, list(FLOW))
    assert "measure the speed with --measure" in result.output and "GB" in result.output


def test_flops_equal_those_that_a_run_books(tmp_path: Path) -> None:
    record = trained(tiny("method.name=self_flow", "train.steps=3", "eval.every=3"), tmp_path)
    estimate = estimated("cost", str(record.path / "spec.toml"))
    assert estimate["flops"]["training"] == record.of("train")[-1]["flops"]


def test_measured_speed_is_positive_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = (
        "--set",
        "backbone.size=pico",
        "--set",
        "train.batch_size=8",
        "--set",
        "runtime.threads=1",
        "--measure",
        "--measure-steps",
        "3",
    )
    found = estimated("cost", "digits", *words)
    assert found["flops_per_second_per_device"] > 0 and not list(tmp_path.iterdir())
    assert found["seconds"]["training"] == pytest.approx(
        found["flops"]["training"] / found["flops_per_second_per_device"]
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sampler": "euler", "sampler_steps": 10}, 10),
        ({"sampler": "euler_maruyama", "sampler_steps": 250}, 250),
        ({"sampler": "heun", "sampler_steps": 10}, 19),
        ({"sampler": "euler", "sampler_steps": 10, "guidance": 1.5}, 20),
        ({"sampler": "euler", "sampler_steps": 10, "guidance": 1.5, "guidance_high": 0.75}, 17),
        ({"sampler": "heun", "sampler_steps": 10, "guidance": 1.5, "guidance_low": 0.25}, 34),
        ({"sampler": "euler", "sampler_steps": 2000, "guidance": 1.5, "guidance_high": 0.5}, 3000),
    ],
)
def test_passes_equal_those_of_the_sampler(fields: dict, expected: int) -> None:
    spec, counted = EvalSpec(samples=2, **fields), 0

    def network(x: torch.Tensor, times: object, y: torch.Tensor) -> Prediction:
        nonlocal counted
        counted += len(x) // 2
        return Prediction(torch.zeros_like(x), {})

    labels = torch.zeros(2, dtype=torch.int64)
    draw_pixels(network, Sampling(spec, (1, 2, 2), 1, torch.device("cpu")), np.arange(2), labels)
    assert passes(spec) == expected == counted


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0),
        ({"method_guidance": 1.4}, 10 + 7),
        ({"method_guidance": 1.4, "method_guidance_low": 0.55, "method_guidance_high": 0.85}, 3 + 2),
    ],
)
def test_guided_passes_are_those_in_which_the_method_guides(fields: dict, expected: int) -> None:
    """The times are 1, 0.9, .. 0.1, and below 0.75 classifier-free guidance takes two passes."""
    cfg = {"guidance": 1.5, "guidance_high": 0.75}
    spec, counted = EvalSpec(samples=2, sampler="euler", sampler_steps=10, **cfg, **fields), 0

    # Any: the arguments of a sampling rule that are not read.
    def rule(model: Any, x: torch.Tensor, *_: Any, scale: float = 1.0, **__: Any) -> torch.Tensor:
        nonlocal counted
        counted += len(x) // 2 if scale != 1 else 0
        return torch.zeros_like(x)

    labels = torch.zeros(2, dtype=torch.int64)
    draw_pixels(rule, Sampling(spec, (1, 2, 2), 1, torch.device("cpu"), rule=rule), np.arange(2), labels)
    assert guided_passes(spec) == expected == counted


def test_evaluation_flops_include_the_last_step() -> None:
    often, once = (load_spec("digits", ["train.steps=100", f"eval.every={n}"]) for n in (60, 100))
    assert evaluation_flops(often) == 2 * evaluation_flops(once)


def test_evaluation_flops_count_each_scale_of_guidance_and_the_validation_loss_once() -> None:
    def flops(scales: str, metrics: str) -> int:
        words = [f"eval.guidance={scales}", f"eval.metrics={metrics}", "eval.samples=100"]
        return evaluation_flops(load_spec("digits", words))

    sampled, both = '["fd:local"]', '["fd:local","loss:held_out"]'
    one, two = flops("1.0", sampled), flops("2.0", sampled)
    assert flops("[1.0, 2.0]", sampled) == one + two == 3 * one
    assert flops("[1.0, 2.0]", both) - flops("1.0", both) == two


def test_batch_that_cannot_be_split_over_devices_is_rejected() -> None:
    result = CliRunner().invoke(cli, [*FLOW, "--devices", "7"])
    assert isinstance(result.exception, UserError)
    assert "cannot be divided into 7 equal parts (processes x train.accumulate)" in str(result.exception)


def test_group_that_does_not_divide_the_batch_is_rejected() -> None:
    for words in (("cost", "digits"), ("cost", "digits", "--devices", "2")):
        settings = ["--set", "method.name=dispersive", "--set", "train.batch_size=48"]
        result = CliRunner().invoke(cli, [*words, *settings])
        assert isinstance(result.exception, UserError) and "method.group = 32" in str(result.exception)


def test_evaluation_flops_include_the_extra_token_of_reg() -> None:
    """It is one more token in attention and in every block."""
    small = ("backbone.size=S", "method.encoder.name=local:small")
    flow, reg = (
        load_spec("digits", (*small[: 2 if m == "reg" else 1], f"method.name={m}")) for m in ("flow", "reg")
    )
    tokens = 16
    assert evaluation_flops(reg) / evaluation_flops(flow) == pytest.approx((tokens + 1) / tokens, rel=0.05)


@pytest.mark.slow
def test_evaluation_time_is_unknown_in_another_precision_than_training() -> None:
    """The preset trains in bfloat16 and evaluates in float32."""
    speed = ("--flops-per-second", "2e14")
    assert estimated(*FLOW, *speed)["seconds"]["evaluation"] is None
    assert estimated(*FLOW, *speed, "--set", "eval.precision=bfloat16")["seconds"]["evaluation"] > 0
