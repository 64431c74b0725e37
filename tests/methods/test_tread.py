"""TREAD: its route and its draws against the release's rules, and its counted cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.backbone.sit import SiTConfig
from harness.backbone.sizes import SIZES
from harness.config.backbone_spec import BackboneSpec
from harness.config.method_config import Schedule
from harness.costs.flops import count
from harness.errors import UserError
from harness.flow.path import interpolate
from harness.runtime.random_streams import Streams
from methods.common.method import Needs
from methods.flow import Flow
from methods.tread import Tread
from tests.support.conformance import CONFIG, STREAMS, batch, made, student
from tests.support.runs import tiny


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
