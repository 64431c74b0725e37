"""DUPA: its loss against the formula in numpy, and its twin draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.config.backbone_spec import BackboneSpec
from harness.config.method_config import Schedule
from harness.flow.path import interpolate
from methods.common.method import Needs
from methods.dupa import Dupa
from methods.flow import Flow
from tests.support.conformance import CONFIG, STREAMS, batch, made, student


def test_loss_is_the_mean_of_two_flow_losses_minus_their_agreement() -> None:
    method, pupil, given = (
        made(Dupa, layer=2, coefficient=0.3, projector_width=64),
        student(Needs()),
        batch(Needs()),
    )
    draw = method.draw(STREAMS, given)
    assert draw.twin is not None
    flows, tokens = [], []
    with torch.no_grad():
        for one in (draw, draw.twin):
            x_t = interpolate(given.x0, one.noise, one.times, CONFIG)
            prediction = pupil.model(x_t, one.times, given.y, taps=(2,))
            error = (prediction.velocity - (one.noise - given.x0)).double().numpy()
            flows.append(np.mean(error**2))
            projected = method.projector(prediction.hidden[2]).double().numpy()
            tokens.append(projected / np.linalg.norm(projected, axis=-1, keepdims=True))
    agreement = (tokens[0] * tokens[1]).sum(axis=-1).mean()
    losses = method.loss(pupil, given, draw)
    assert losses.parts["flow"].item() == pytest.approx(np.mean(flows), rel=1e-5)
    assert losses.parts["align"].item() == pytest.approx(-agreement, abs=1e-5)
    assert losses.total.item() == pytest.approx(np.mean(flows) - 0.3 * agreement, rel=1e-5)


def test_gradient_reaches_the_network_through_both_passes() -> None:
    """Without the flow losses; neither side is detached."""
    method, pupil, given = made(Dupa, projector_width=64), student(Needs()), batch(Needs())
    draw, gradients = method.draw(STREAMS, given), []
    assert draw.twin is not None
    for one, other in ((draw, draw.twin), (draw.twin, draw)):
        swapped = made(Dupa, projector_width=64)
        swapped.load_state_dict(method.state_dict())
        align = swapped.loss(pupil, given, type(one)(one.noise, one.times, twin=other)).parts["align"]
        gradients.append(torch.autograd.grad(align, pupil.model.blocks[0].mlp.fc1.weight)[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    assert gradients[0].any()


def test_twin_is_an_independent_draw_of_time_and_noise() -> None:
    draw = made(Dupa, projector_width=64).draw(STREAMS, batch(Needs(), 1000))
    assert draw.twin is not None
    for one, other in ((draw.noise, draw.twin.noise), (draw.times.levels, draw.twin.times.levels)):
        pair = torch.stack([one.flatten(1)[:, 0], other.flatten(1)[:, 0]])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 4 / np.sqrt(1000)
    assert draw.twin.noise.std().item() == pytest.approx(1, abs=0.02)
    assert draw.twin.times.levels.mean().item() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12000))


def test_step_without_weight_has_one_pass_and_the_bits_of_flow() -> None:
    method, late = made(Dupa, schedule=Schedule(until=3)), batch(Needs(), step=4)
    draw, pupil = method.draw(STREAMS, late), student(Needs())
    assert draw.twin is None and method.draw(STREAMS, batch(Needs(), step=3)).twin is not None
    flow = made(Flow)
    expected = flow.loss(pupil, late, flow.draw(STREAMS, late)).total
    assert torch.equal(method.loss(pupil, late, draw).total, expected)


def test_default_layer_is_eight_of_the_large_sizes() -> None:
    layers = {size: Dupa.Config().resolved(BackboneSpec(size=size)).layer for size in ("B", "L", "XL")}
    assert layers == {"B": 4, "L": 8, "XL": 8}
