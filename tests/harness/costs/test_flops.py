"""Counted FLOPs against formulas on paper, and the phase meter (promise 5)."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.assembly.build import method_of_spec
from harness.assembly.resolve import load_spec
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import SIZES
from harness.backbone.times import Times
from harness.config.backbone_spec import BackboneSpec
from harness.config.spec import RunSpec
from harness.costs import flops
from harness.costs.flops import count, count_spec
from harness.costs.meter import Meter
from harness.encoders.base import Architecture
from harness.flow.method import TrainingMethod
from methods.flow import Flow
from methods.repa import Repa
from methods.self_flow import SelfFlow
from tests.support.paper_flops import S2, forward_flops


@pytest.mark.parametrize("levels", [1, 2, 256])
def test_counted_flops_equal_those_on_paper(levels: int) -> None:
    with torch.device("meta"):
        model = SiT(S2).to("meta")
        x, y = torch.empty(3, *S2.shape), torch.zeros(3, dtype=torch.int64)
        which = torch.zeros(3, S2.tokens, dtype=torch.bool) if levels == 2 else None
        times = Times(torch.zeros(3, levels), which)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x, times, y)
    assert counter.get_total_flops() == 3 * forward_flops(S2, levels, 12)


def test_two_times_cost_less_than_modulation_per_token() -> None:
    """For SiT-S/2 with 256 tokens, a dual-time pass costs at most 1.02 plain ones, and modulation per token
    1.47."""
    plain = forward_flops(S2, 1, 12)
    assert forward_flops(S2, 2, 12) / plain < 1.02 < 1.4 < forward_flops(S2, 256, 12) / plain


def test_phases_of_flow_repa_and_self_flow_equal_those_on_paper() -> None:
    spec = load_spec("digits", ["backbone.size=S", "train.batch_size=4"])
    backbone = BackboneSpec(size="S")
    costs = {
        cls: count(
            cls.build(cls.Config().resolved(backbone), S2, encoder_dims=(768,)),
            spec,
            encoders=(Architecture(768, 1000),),
        ).per_step
        for cls in (Flow, Repa, SelfFlow)
    }
    D, T = 384, 256
    one = 4 * forward_flops(S2, 1, 12)
    # No gradient flows to x0, the input of the patch embedding, nor to the sinusoids.
    embed = 2 * 4 * T * D * 16
    sines = 2 * 4 * 256 * D
    assert costs[Flow]["student"] == 3 * one - embed - sines
    assert set(costs[Flow]) == {"student", "optimizer", "ema"}
    assert costs[Repa]["encoder"] == 4000
    projector = 3 * 2 * 4 * T * (D * 2048 + 2048 * 2048 + 2048 * 768)
    assert costs[Repa]["student"] == costs[Flow]["student"] + projector
    assert costs[SelfFlow]["teacher"] == 4 * forward_flops(S2, 1, 8)
    assert costs[SelfFlow]["ema"] == costs[Flow]["ema"]


def test_total_cost_is_steps_times_step() -> None:
    cost = count_spec(load_spec("digits", ["train.steps=7"]))
    assert cost.total == 7 * sum(cost.per_step.values())
    assert cost.parameters == sum(
        p.numel() for p in SiT(SiTConfig(SIZES["nano"], 2, (1, 8, 8), 10)).parameters()
    )


def test_meter_books_nested_phases_exclusively() -> None:
    now = [0.0]

    def spend(seconds: float) -> None:
        now[0] += seconds

    meter = Meter(lambda: now[0], lambda start, end: end - start)
    spend(100)
    with meter.phase("student"):
        spend(1)
        with meter.phase("teacher"):
            spend(2)
        spend(4)
    spend(100)
    with meter.single("warmup"), meter.phase("student"), meter.phase("teacher"):
        spend(8)
    assert meter.settle() == {"student": 5, "teacher": 2, "warmup": 8}
    meter.restore({"student": 50.0})
    with meter.phase("student"):
        spend(1)
    assert meter.settle()["student"] == 51


@pytest.mark.slow
def test_cost_is_counted_once_for_specs_that_differ_in_seed_or_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any setting on which the cost of a step depends is counted again."""
    monkeypatch.setattr(flops, "_costs", {})
    found = {
        words: (count_spec(load_spec("digits", [*SMALL, *words])), count(*method_and_spec(*words)))
        for words in (
            ("method.name=flow",),
            ("method.name=flow", "seed=1"),
            ("method.name=flow", "train.steps=9"),
            ("method.name=flow", "train.batch_size=4"),
            ("method.name=flow", "backbone.patch=4"),
            ("method.name=self_flow",),
            ("method.name=self_flow", "method.schedule.until=3"),
            ("method.name=self_flow", "method.schedule.until=3", "train.steps=9"),
            ("method.name=self_flow", "method.schedule.until=3", "train.steps=2"),
        )
    }
    assert all(kept == counted for kept, counted in found.values())
    assert len(flops._costs) == len(found) - 3


SMALL = ("backbone.size=2x64x4", "train.steps=7")


def method_and_spec(*words: str) -> tuple[TrainingMethod, RunSpec]:
    spec = load_spec("digits", [*SMALL, *words])
    return method_of_spec(spec)[0], spec
