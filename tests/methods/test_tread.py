"""TREAD: its routed pass and its draws against released code, and its counted cost.

The expected numbers are those of CompVis/tread fccf77c on a CPU, with weights and draws of `filled`:
`DiT(input_size=8, patch_size=2, in_channels=3, hidden_size=16, depth=4, num_heads=2, num_classes=4,
enable_routing=True, routes=[dict(selection_ratio=rate, start_layer_idx=1, end_layer_idx=2)])` of dit.py, and
`RF("uniform")(net, x, y=y)` of rf.py, where `torch.rand` returns times and then the order of the tokens, and
`torch.randn_like` the noise. Samples are those of `RF.sample(net, z, 4, 1.0, y=y)`. Run it with
`TORCHDYNAMO_DISABLE=1`, which leaves the blocks uncompiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import SIZES, Size
from harness.backbone.times import Times
from harness.config.backbone_spec import BackboneSpec
from harness.config.method_config import Schedule
from harness.costs.flops import count
from harness.errors import UserError
from harness.flow.batch import Batch, Draw
from harness.flow.path import interpolate
from harness.flow.samplers import euler, velocity_field
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.common.method import Needs
from methods.flow import Flow
from methods.tread import Tread
from tests.support.conformance import CONFIG, STREAMS, batch, made, student
from tests.support.filled import fill, filled
from tests.support.runs import tiny

SMALL = SiTConfig(Size(4, 16, 2), 2, (3, 8, 8), 4)
SHAPE = (2, 3, 8, 8)
LABELS = torch.tensor([1, 3])


@pytest.fixture(scope="module")
def net() -> SiT:
    network = SiT(SMALL)
    fill(network)
    return network.eval()


class GivenOrder(Streams):
    """Streams that return the order of the tokens that released code was given."""

    def uniform(
        self, name: str, indices: Sequence[int] | np.ndarray, shape: Sequence[int] = ()
    ) -> torch.Tensor:
        return filled(name, (len(indices), *shape)) / 0.6 + 0.5


def given() -> Batch:
    return Batch(np.arange(2), filled("x", SHAPE), LABELS, LABELS)


def routed(rate: float) -> tuple[Tread, Draw]:
    """Return the method, whose route is blocks 2 and 3, and its draw with the given order."""
    method = Tread.build(Tread.Config(rate=rate, first_layer=2, last_layer=3), SMALL)
    draw = Draw(3 * filled("eps", SHAPE), Times.per_sample(torch.tensor([0.3, 0.8])))
    return method, method.draw_more(GivenOrder(0), given(), draw)


@torch.no_grad()
@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.75, 1.4264999628067017),
        (0.5, 1.411792516708374),
        (0.3, 1.3281441926956177),
        (0.0, 1.323082685470581),
    ],
)
def test_loss_equals_that_of_released_code(net: SiT, rate: float, expected: float) -> None:
    """Tokens that skipped come back by position, and all tokens are in the loss. Rate 0 routes none."""
    method, draw = routed(rate)
    losses = method.loss(Student(net, None, SMALL), given(), draw)
    assert losses.total.item() == pytest.approx(expected, abs=1e-6)


def test_tokens_that_stay_are_those_of_released_code() -> None:
    """`Router.get_mask`, sorted."""
    half, quarter = (routed(rate)[1].route for rate in (0.5, 0.75))
    assert half is not None and quarter is not None
    assert quarter.kept.tolist() == [[3, 6, 10, 14], [1, 5, 9, 13]]
    assert half.kept.tolist() == [[2, 3, 6, 7, 10, 11, 13, 14], [1, 2, 5, 6, 8, 9, 12, 13]]


@torch.no_grad()
def test_samples_equal_those_of_released_code(net: SiT) -> None:
    """No token is routed in sampling."""
    v = velocity_field(net, LABELS, null=4, rule=routed(0.5)[0].velocity)
    x = euler(v, 3 * filled("z", SHAPE), 4)
    first = [0.19444340467453003, -0.36226874589920044, -0.5185737609863281, 0.9418551921844482]
    assert x.flatten()[:4].tolist() == pytest.approx(first, abs=1e-5)
    assert x.sum().item() == pytest.approx(-14.810742378234863, abs=1e-4)


def test_default_route_is_the_released_one_of_b() -> None:
    """Blocks 2 to 8 counted from 0, both included (configs/model/tread.yaml)."""
    routes = {}
    for size in ("B", "L", "XL"):
        config = Tread.Config().resolved(BackboneSpec(size=size))
        routes[size] = (config.first_layer, config.last_layer)
    assert routes == {"B": (3, 9), "L": (3, 21), "XL": (3, 25)}


@pytest.mark.parametrize(("rate", "stay"), [(0.5, 8), (0.3, 12), (0.75, 4), (0.99, 1)])
def test_number_of_tokens_that_stay_is_the_released_one(rate: float, stay: int) -> None:
    """T - int(T rate) of 16 (routing_module.py `get_mask`)."""
    route = made(Tread, rate=rate).draw(STREAMS, batch(Needs())).route
    assert route is not None and route.kept.shape == (8, stay)
    assert all(len(set(row.tolist())) == stay for row in route.kept)


def test_every_token_stays_with_the_same_probability() -> None:
    given = batch(Needs(), 4000)
    route = made(Tread).draw(Streams(1), given).route
    assert route is not None
    shares = torch.bincount(route.kept.flatten(), minlength=CONFIG.tokens) / 4000
    assert ((shares - 0.5).abs() < 4 * np.sqrt(0.25 / 4000)).all()


def test_loss_is_that_of_a_routed_pass_over_all_tokens() -> None:
    method, pupil, given = made(Tread), student(Needs()), batch(Needs())
    draw = method.draw(STREAMS, given)
    x_t = interpolate(given.x0, draw.noise, draw.times, CONFIG)
    velocity = pupil.model(x_t, draw.times, given.y, route=draw.route).velocity
    error = (velocity - (draw.noise - given.x0)).square().mean()
    losses = method.loss(pupil, given, draw)
    assert list(losses.parts) == ["flow"] and losses.total.item() == pytest.approx(error.item(), rel=1e-6)
    plain = made(Flow).loss(pupil, given, made(Flow).draw(STREAMS, given))
    assert not torch.equal(losses.total, plain.total)


def test_routing_ends_after_its_last_step() -> None:
    method = made(Tread, schedule=Schedule(until=3))
    routes = [method.draw(STREAMS, batch(Needs(), step=step)).route for step in (3, 4)]
    assert routes[0] is not None and routes[1] is None
    with pytest.raises(UserError, match=r"method.schedule: .*only `until`"):
        tiny("method.name=tread", "method.schedule.warmup=3")
    with pytest.raises(UserError, match=r"method.first_layer = 4: is after last_layer = 2"):
        tiny("method.name=tread", "method.first_layer=4", "method.last_layer=2")


@pytest.mark.slow
def test_counted_flops_fall_by_the_share_that_skips() -> None:
    """SiT-B/2 with 256 tokens: 7 of 12 blocks with half of the tokens, and a quarter of their attention."""
    backbone, spec = SiTConfig(SIZES["B"], 2, (4, 32, 32), 1000), tiny("train.batch_size=2", "train.steps=9")
    with torch.device("meta"):
        config = Tread.Config(schedule=Schedule(until=4)).resolved(BackboneSpec(size="B"))
        routed = count(Tread.build(config, backbone), spec)
        plain = count(Flow.build(Flow.Config(), backbone), spec)
    T, D = 256, 768
    saved = 7 * (12 * D**2 * T / 2 + 2 * D * (T**2 - (T / 2) ** 2))
    # 2 FLOPs per product, forward and twice backward, 2 samples.
    assert plain.per_step["student"] - routed.per_step["student"] == pytest.approx(
        2 * 3 * 2 * saved, rel=0.04
    )
    assert routed.per_step_after == plain.per_step
    assert routed.total == 4 * routed.step + 5 * plain.step
