"""SPRINT: its losses, its draws and its guidance against released code, and its counted cost.

The expected numbers are those of snap-research/Sprint 12c5fc9 on a CPU, with weights and draws of `filled`:
`SiT(context_size=8, patch_size=2, in_channels=3, hidden_size=16, num_heads=2, num_classes=4, encoder_depth=1,
middle_depth=2, decoder_depth=1)` of src/models/sit.py without its rotation (cosine 1, sine 0),
`FlowMatching(weighting="uniform").compute_loss(net, x, dict(y=y), mask_config=...)` of
src/scheduler/flow_matching.py with `torch.rand` and `torch.randn_like` replaced by those draws, and
`sample_ode(net, z, y, num_steps=4, cfg_scale=3.0, path_drop_guidance=True)` with null label 4 in place of
1000.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.backbone.condition import Text
from harness.backbone.initialize import initialize
from harness.backbone.routing import Route
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import SIZES, Size
from harness.backbone.times import Times
from harness.backbone.tokens import Part
from harness.config.backbone_spec import BackboneSpec
from harness.config.method_config import Schedule
from harness.config.registry import load
from harness.costs.estimate import evaluation_flops
from harness.costs.flops import count
from harness.errors import UserError
from harness.exchange.convert import Weights, to_released
from harness.flow.batch import Batch, Draw, View
from harness.flow.samplers import Interval, euler, velocity_field
from harness.flow.student import Student
from methods.common.method import Needs
from methods.flow import Flow
from methods.sprint import Sprint, kept_tokens
from tests.support.commands import flowrace
from tests.support.conformance import OF_TEXT, STREAMS, batch, made, network
from tests.support.filled import fill, filled
from tests.support.runs import tiny, trained

CONFIG = SiTConfig(Size(4, 16, 2), 2, (3, 8, 8), 4, fused=(2, 3))
SHAPE = (2, 3, 8, 8)
EVERY = torch.arange(16).expand(2, -1)
LABELS = torch.tensor([1, 3])


@pytest.fixture(scope="module")
def net() -> SiT:
    network = SiT(CONFIG)
    fill(network)
    # In place of the rotation that the released network has.
    network.pos_embed.zero_()
    return network.eval()


def built(**settings: Any) -> Sprint:
    return Sprint.build(Sprint.Config(first_layer=2, last_layer=3, **settings), CONFIG)


def kept_at(rate: float) -> Tensor:
    if not rate:
        return EVERY
    order = filled("route", (2, 16)) / 0.6 + 0.5
    return kept_tokens(order, CONFIG.parts, rate, grouped=True)


@pytest.mark.parametrize(
    ("rate", "plain", "with_drop"),
    [
        (0.75, 1.1067278385162354, 1.0125213861465454),
        (0.5, 1.192445158958435, 1.0050972700119019),
        (0.0, 1.4062082767486572, 1.0148545503616333),
    ],
)
def test_losses_equal_those_of_released_code(net: SiT, rate: float, plain: float, with_drop: float) -> None:
    """Without a dropped path, and with that of the first sample. Rate 0 is the last phase."""
    given = Batch(np.arange(2), filled("x", SHAPE), LABELS, LABELS)
    times = Times.per_sample(torch.tensor([0.3, 0.8]))
    for dropped, expected in ((None, plain), (torch.tensor([True, False]), with_drop)):
        draw = Draw(3 * filled("eps", SHAPE), times, route=Route(2, 3, kept_at(rate), dropped))
        losses = built().loss(Student(net, None, CONFIG), given, draw)
        assert list(losses.parts) == ["flow"]
        assert losses.total.item() == pytest.approx(expected, abs=1e-5)


def test_alignment_inside_the_route_equals_that_of_released_code(net: SiT) -> None:
    """Compare with `compute_loss` of `representation_depth=3`, which is block 2, and an encoder of width 6.

    A dropped path is aligned too.
    """
    stack = load("method", "repa+sprint")
    settings = {"repa": {"layer": 2, "projector_width": 8}, "sprint": {"first_layer": 2, "last_layer": 3}}
    method = stack.build(stack.Config(**settings), CONFIG, encoder_dims=(6,))
    fill(method.terms["repa"].projectors[0], "projector.{}".format)
    view = View(filled("features", (2, 16, 6)))
    given = Batch(np.arange(2), filled("x", SHAPE), LABELS, LABELS, views=(view,))
    times = Times.per_sample(torch.tensor([0.3, 0.8]))
    draw = Draw(3 * filled("eps", SHAPE), times)
    for dropped, flow in ((None, 1.1067278385162354), (torch.tensor([True, False]), 1.0125213861465454)):
        one = replace(draw, route=Route(2, 3, kept_at(0.75), dropped))
        parts = method.loss(Student(net, None, CONFIG), given, one).parts
        assert parts["flow"].item() == pytest.approx(flow, abs=1e-5)
        assert parts["repa"].item() == pytest.approx(-0.031113550066947937, abs=1e-6)


@torch.no_grad()
def test_guidance_of_a_text_is_that_of_its_samples_one_by_one() -> None:
    """In a sampler, samples share one null text and one time. In the formula each has its own."""
    config = replace(OF_TEXT, fused=(2, 3))
    net, given = network(0, config), batch(Needs(), 2, backbone=config)
    method = Sprint.build(Sprint.Config(first_layer=2, last_layer=3), config)
    null = Text(torch.zeros(1, 6, 12))
    v = velocity_field(net, given.y, null=null, rule=method.velocity, own=Interval(3.0))
    times = Times.per_sample(torch.full((2,), 0.4))
    nobody = Route(2, 3, torch.empty(2, 0, dtype=torch.int64))
    weak = net(given.x0, times, Text(null.features.expand(2, -1, -1)), route=nobody).velocity
    expected = weak + 3 * (net(given.x0, times, given.y).velocity - weak)
    torch.testing.assert_close(v(given.x0, 0.4), expected, rtol=1e-4, atol=1e-5)


def test_tokens_that_stay_are_those_of_released_code() -> None:
    assert kept_at(0.75).tolist() == [[1, 2, 12, 15], [0, 7, 8, 11]]
    assert kept_at(0.5).tolist() == [[1, 2, 5, 7, 8, 11, 12, 15], [0, 3, 4, 7, 8, 11, 12, 14]]


@pytest.mark.parametrize(
    ("shape", "patch", "rate", "side", "stay"),
    [
        ((3, 8, 8), (1, 1), 0.875, 4, 2),
        ((3, 8, 8), (1, 1), 0.625, 4, 6),
        ((3, 4, 8, 8), (1, 2, 2), 0.75, 2, 2),
        ((4, 16), (1,), 0.75, 4, 1),
    ],
)
def test_every_square_of_a_grid_keeps_the_same_number(
    shape: tuple[int, ...], patch: tuple[int, ...], rate: float, side: int, stay: int
) -> None:
    """The released rates of images and videos, and one axis."""
    part = Part(shape, patch)
    kept = kept_tokens(torch.rand(5, part.tokens), (part,), rate, grouped=True)
    for row in kept.tolist():
        places = np.stack(np.unravel_index(row, part.grid)) // side
        _, counts = np.unique(places, axis=1, return_counts=True)
        assert len(set(row)) == len(row) == part.tokens * (1 - rate) and (counts == stay).all()


@pytest.mark.parametrize(("rate", "grouped", "stay"), [(0.7, True, 4), (0.75, False, 4), (0.99, True, 1)])
def test_rate_that_no_square_has_keeps_any_tokens(rate: float, grouped: bool, stay: int) -> None:
    kept = kept_tokens(torch.rand(3, 16), CONFIG.parts, rate, grouped=grouped)
    assert kept.shape == (3, stay) and all(sorted(set(row)) == row for row in kept.tolist())


@pytest.mark.parametrize("rate", ["0.9", "0.8", "0.7", "0.6", "0.3", "0.1"])
def test_tokens_that_stay_are_counted_in_decimals(rate: str) -> None:
    """Binary fractions round 20 (1 - 0.9) below 2."""
    stay = math.floor(20 * (1 - Fraction(rate)))
    kept = kept_tokens(torch.rand(2, 20), (Part((3, 20), (1,)),), float(rate), grouped=False)
    assert kept.shape == (2, stay)


@torch.no_grad()
def test_samples_with_path_drop_guidance_equal_those_of_released_code(net: SiT) -> None:
    found = {}
    for scale in (3.0, 1.0):
        v = velocity_field(net, LABELS, null=4, rule=built().velocity, own=Interval(scale))
        found[scale] = euler(v, 3 * filled("z", SHAPE), 4)
    guided = [-1.8821752667427063, -2.46816897764802, -4.5514542162418365, -3.199315071105957]
    unguided = [-0.42978692054748535, -1.00942337885499, -2.625847280025482, -1.2228358685970306]
    assert found[3.0].flatten()[:4].tolist() == pytest.approx(guided, abs=1e-4)
    assert found[3.0].sum().item() == pytest.approx(-7.506251085782424, abs=1e-3)
    assert found[1.0].flatten()[:4].tolist() == pytest.approx(unguided, abs=1e-5)
    assert found[1.0].sum().item() == pytest.approx(-11.717632490035612, abs=1e-4)


def test_default_route_is_the_released_one_of_xl() -> None:
    """Two blocks, 24, and two (configs/train/SIT_XL_SPRINT_256.yaml)."""
    blocks = {s: Sprint.Config().resolved(BackboneSpec(size=s)).blocks for s in ("B", "L", "XL")}
    assert blocks == {"B": (3, 10), "L": (3, 22), "XL": (3, 26)}


def test_path_drop_has_its_share_and_does_not_end() -> None:
    """After `until` every token stays, as in the authors' last phase."""
    method = made(Sprint, path_drop=0.25, schedule=Schedule(until=3))
    routes = [method.draw(STREAMS, batch(Needs(), 1000, step=step)).route for step in (3, 4)]
    assert [route.kept.shape[1] for route in routes] == [4, 16]
    assert torch.equal(routes[0].dropped, routes[1].dropped)
    assert abs(routes[0].dropped.float().mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1000)
    assert (
        made(Sprint, path_drop=0.0, schedule=Schedule(until=3)).draw(STREAMS, batch(Needs(), step=4)).route
        is None
    )
    with pytest.raises(UserError, match=r"method.schedule: sprint is on or off, .*only `until`"):
        tiny("method.name=sprint", "method.schedule.decay=linear", "method.schedule.until=3")


def test_mask_token_starts_as_released() -> None:
    """A normal draw of standard deviation 0.02, with either initialisation."""
    network = SiT(CONFIG)
    for initial in ("zero", "released"):
        initialize(network, STREAMS, initial=initial)
        token = network.fusions["3"].mask_token
        assert 0.005 < token.std().item() < 0.04 and abs(token.mean().item()) < 0.02


def test_guidance_costs_the_early_and_the_late_blocks_once_more() -> None:
    plain, guided = (
        evaluation_flops(tiny("method.name=sprint", *more)) for more in ((), ("eval.method_guidance=3",))
    )
    # Of four blocks two run, and the rest is common.
    assert 0.4 * plain < guided - plain < 0.7 * plain
    with pytest.raises(UserError, match=r"eval.method_guidance = 3.0, but sprint has path_drop = 0"):
        tiny("method.name=sprint", "method.path_drop=0", "eval.method_guidance=3")
    assert tiny("method.name=sprint", "method.rate=0", "eval.method_guidance=3")


def test_export_names_the_fusion_that_released_layouts_lack(net: SiT) -> None:
    with pytest.raises(UserError, match="a fusion of blocks 2 to 3, as method sprint adds"):
        to_released(Weights(net.state_dict()), CONFIG, "sit")


@pytest.mark.slow
def test_counted_flops_fall_by_the_share_that_skips() -> None:
    """SiT-B/2 with 256 tokens: 8 of 12 blocks with a quarter of the tokens, and one linear layer more."""
    backbone, spec = SiTConfig(SIZES["B"], 2, (4, 32, 32), 1000), tiny("train.batch_size=2", "train.steps=9")
    fused = SiTConfig(SIZES["B"], 2, (4, 32, 32), 1000, fused=(3, 10))
    with torch.device("meta"):
        config = Sprint.Config(schedule=Schedule(until=4)).resolved(BackboneSpec(size="B"))
        routed, plain = (
            count(Sprint.build(config, fused), spec),
            count(Flow.build(Flow.Config(), backbone), spec),
        )
    T, D = 256, 768
    saved = 8 * (12 * D**2 * T * 3 / 4 + 2 * D * (T**2 - (T / 4) ** 2)) - 2 * D**2 * T
    # 2 FLOPs per product, forward and twice backward, 2 samples.
    assert plain.per_step["student"] - routed.per_step["student"] == pytest.approx(12 * saved, rel=0.04)
    later = routed.per_step_after["student"] - plain.per_step["student"]
    assert later == pytest.approx(12 * 2 * D**2 * T, rel=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_networks")
def test_run_is_evaluated_and_sampled_with_its_guidance(tmp_path: Path) -> None:
    """`flowrace sample` draws the same run with and without guidance, from one checkpoint."""
    record = trained(tiny("method.name=sprint", "eval.method_guidance=3"), tmp_path)
    assert record.status == "done"
    files = [tmp_path / name for name in ("guided.npz", "plain.npz")]
    for file, scale in zip(files, (60.0, 1.0), strict=True):
        words = ["-n", "4", "--output", str(file), "--set", f"eval.method_guidance={scale}"]
        assert flowrace("sample", str(record.path), *words).exit_code == 0
    guided, plain = (np.load(file)["arr_0"] for file in files)
    assert guided.shape == plain.shape and not np.array_equal(guided, plain)
