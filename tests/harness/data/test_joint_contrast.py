"""Contrastive flow matching on joint data: the negative term has the part weights of the flow loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.train.objective import Objective
from tests.support.joint_runs import built, fed


def test_contrastive_flow_weighs_the_negative_term_like_the_flow_loss() -> None:
    """Computed in float64 for each part. Other weights would leave the loss without a lower bound."""
    run = built("method.name=contrastive_flow", "method.coefficient=0.2", "data.video_weight=0.067")
    batch, draw = fed(run)
    with torch.no_grad():
        x = (1 - draw.times.levels) * batch.x0 + draw.times.levels * draw.noise
        velocity = run.model(x, draw.times, batch.y).velocity.double().numpy()
        total = Objective(run)(batch, draw)[0].item()
    target = (draw.noise - batch.x0).double().numpy()
    other, expected, start = np.roll(target, 1, axis=0), 0.0, 0
    for part, weight in zip(run.model.config.parts, run.method.setting.weights, strict=True):
        values = slice(start, start := start + part.values)
        near, far = (((velocity - aim)[:, values] ** 2).mean() for aim in (target, other))
        expected += weight * (near - 0.2 * far)
    assert min(run.method.setting.weights) < 0.2 and total == pytest.approx(expected, rel=1e-5)
