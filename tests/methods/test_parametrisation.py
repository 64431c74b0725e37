"""What the network predicts, in every method: the flow loss equals a closed form in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.assembly.resolve import load_spec
from harness.config import registry
from harness.flow.batch import Batch, Draw
from harness.flow.path import interpolate
from methods.common.method import Method
from tests.support.conformance import CONFIG, STREAMS, batch, configured, made, student
from tests.support.small_methods import f64

X_PREDICTING = replace(CONFIG, prediction="x")
FAST = ("flow", "self_flow", "internal_guidance", "tread")
METHODS = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name in registry.METHODS
    if "+" not in name
]


def predicted(method: Method, given: Batch, draw: Draw, backbone: Any) -> np.ndarray:
    """Return the network's velocity on the noised samples of a draw."""
    needs = method.needs()
    extra = torch.zeros(8, 24) if needs.summary else None
    if extra is not None:
        t, clean = draw.times.levels, given.views[0].summary
        extra = (1 - t) * clean + t * draw.extra["token_noise"]
    x = interpolate(given.x0, draw.noise, draw.times, backbone)
    with torch.no_grad():
        pupil = student(needs, backbone)
        groups, route = draw.groups, draw.route
        return f64(pupil(x, draw.times, given.y, groups=groups, extra=extra, route=route).velocity)


def values_of(tau: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(f64(CONFIG.spread(tau)), shape)


@pytest.mark.parametrize("name", METHODS)
def test_flow_loss_of_x_prediction_is_the_error_of_the_clean_sample_over_the_clamped_time(name: str) -> None:
    cls = registry.load("method", name)
    method, given = made(cls, X_PREDICTING), batch(configured(cls).needs())
    draw = method.draw(STREAMS, given)
    # Times below the clamp too.
    draw = replace(draw, times=replace(draw.times, levels=draw.times.levels.clone()))
    draw.times.levels[:3] *= 0.05
    losses = method.loss(student(method.needs(), X_PREDICTING), given, draw)
    x0, tau = f64(given.x0), values_of(draw.times.per_token_levels(), given.x0.shape)
    x = (1 - tau) * x0 + tau * f64(draw.noise)
    clean = x - np.maximum(tau, 0.05) * predicted(method, given, draw, X_PREDICTING)
    expected = np.square((clean - x0) / np.maximum(tau, 0.05)).mean()
    assert losses.parts["flow"].item() == pytest.approx(expected, rel=1e-4)
    losses.total.backward()


def test_prediction_is_another_trajectory_only_if_it_is_set() -> None:
    plain = load_spec("digits")
    assert load_spec("digits", ["flow.prediction=velocity"]).id == plain.id
    assert load_spec("digits", ["flow.prediction=x"]).id != plain.id
    assert "flow" not in plain.trajectory
