"""SIGReg: its statistic against LeJEPA's code and a numerical integral, and its projections."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.runtime.random_streams import Streams
from methods.self_flow import SelfFlow
from methods.sigreg import SigReg, epps_pulley
from tests.support.small_methods import batch, build, f64, loss, student

RELEASED = [
    2.728368043899536,
    4.9881463050842285,
    3.1629486083984375,
    4.287635803222656,
    3.8229551315307617,
    3.5539441108703613,
    4.5722808837890625,
]
"""`EppsPulley()(x @ A)` of rbalestr-lab/lejepa eddffdd (lejepa/univariate/epps_pulley.py), with x and A of
the test."""


def filled(*shape: int) -> Tensor:
    place = 1.7 * torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return torch.cos(place).float().reshape(shape)


def test_statistic_equals_that_of_released_code() -> None:
    x, directions = 1.3 * filled(12, 5) + 0.2, filled(5, 7)
    projected = x @ (directions / directions.norm(dim=0))
    assert epps_pulley(projected[None])[0].tolist() == pytest.approx(RELEASED, rel=1e-5)


def test_statistic_is_the_weighted_distance_of_characteristic_functions() -> None:
    """N times the integral over [-3, 3] of |phi_N - phi|^2 phi, by a fine rule; the 17 points err by 1 %."""
    x = f64(filled(1, 9, 2))[0]
    t = np.linspace(-3, 3, 6001)
    gaps = np.abs(np.exp(1j * t[:, None, None] * x).mean(axis=1) - np.exp(-(t**2) / 2)[:, None]) ** 2
    exact = len(x) * np.trapezoid(gaps * np.exp(-(t**2) / 2)[:, None], t, axis=0)
    assert epps_pulley(filled(1, 9, 2))[0].tolist() == pytest.approx(exact, rel=0.01)


def test_loss_is_the_mean_statistic_of_the_mean_over_tokens() -> None:
    method = build(SigReg, layer=2, projections=6, group=4, coefficient=0.3)
    losses, _, given, draw, prediction = loss(method)
    z, directions = f64(prediction.hidden[2]).mean(axis=1), f64(draw.shared["projections"])
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-6)
    each = [epps_pulley(torch.from_numpy(part @ directions.T)[None].float()) for part in (z[:4], z[4:])]
    assert losses.parts["align"].item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    expected = losses.parts["flow"].item() + 0.3 * losses.parts["align"].item()
    assert losses.total.item() == pytest.approx(expected, rel=1e-6)
    assert given.step == 1


def test_normal_samples_have_a_smaller_statistic_than_collapsed_ones() -> None:
    normal = Streams(0).normal("z", range(64), (8,))
    directions = F.normalize(Streams(0).normal("a", range(50), (8,)), dim=-1)
    values = {
        scale: epps_pulley((scale * normal @ directions.T)[None]).mean() for scale in (0.0, 0.5, 1.0, 3.0)
    }
    assert min(values, key=values.__getitem__) == 1.0


def test_projections_depend_on_the_step_only() -> None:
    method = build(SigReg, layer=2, projections=6)
    given = batch(8)
    first, half, later = (
        method.draw(Streams(3), one).shared["projections"]
        for one in (given, batch(4, first=4), replace(given, step=2))
    )
    assert torch.equal(first, half) and not torch.equal(first, later)


def test_micro_batches_of_whole_groups_have_the_mean_of_the_batch() -> None:
    method, pupil = build(SigReg, layer=2, projections=6, group=4), student()

    def align(size: int, first: int) -> float:
        given = batch(size, first)
        return method.loss(pupil, given, method.draw(Streams(0), given)).parts["align"].item()

    assert np.mean([align(4, 0), align(4, 4)]) == pytest.approx(align(8, 0), rel=1e-5)


def test_student_has_self_flows_input() -> None:
    ours, theirs = build(SigReg, layer=2), build(SelfFlow, student_layer=1, teacher_layer=3)
    draws = [method.draw(Streams(5), batch(8)) for method in (ours, theirs)]
    assert torch.equal(draws[0].times.levels, draws[1].times.levels)
    assert torch.equal(draws[0].times.which, draws[1].times.which)
