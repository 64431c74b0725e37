"""Samplers on ODEs and SDEs with known solutions; test_golden.py compares them with released code."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from harness.costs.estimate import sampler_times
from harness.flow.samplers import SAMPLERS, SDE_LAST, euler, euler_maruyama, heun, velocity_field


def to_gaussian(x: torch.Tensor, t: float, sd: float = 0.5) -> torch.Tensor:
    """Return E[eps - x0 | x_t], the exact velocity of the linear path from N(0, sd^2) data to noise."""
    return x * (t - (1 - t) * sd**2) / ((1 - t) ** 2 * sd**2 + t**2)


def test_euler_is_exact_for_constant_velocity() -> None:
    x = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constant = torch.full_like(x, 0.25)
    torch.testing.assert_close(euler(lambda *_: constant, x, 3), x - constant)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_error_falls_with_the_order_of_the_sampler(sampler, order: int) -> None:
    """dx/dt = x from t = 1 to 0 gives x/e. The error falls as steps^-order, up to float32 rounding."""
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    field = lambda x, t: x  # noqa: E731
    errors = [abs(sampler(field, x, steps).item() - math.exp(-1)) for steps in (10, 20, 40)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_samples_have_the_spread_of_the_data(name: str) -> None:
    """With the exact velocity for N(0, 0.25) data, samples have a standard deviation of 0.5."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40_000, 1, 1, 1, generator=generator, dtype=torch.float64)
    noise = lambda i, x: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
    samples = SAMPLERS[name](to_gaussian, x, 200, noise=noise)
    assert samples.std().item() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(("name", "last"), [("euler", 0.0), ("euler_maruyama", SDE_LAST)])
def test_shift_moves_the_times_between_the_ends(name: str, last: float) -> None:
    """RAE integrators.py: t = alpha u / (1 + (alpha - 1) u) of an even grid of u from 1 to the last time."""
    alpha, times = 6.5, torch.tensor(sampler_times(name, 8, 6.5), dtype=torch.float64)
    even = times / (alpha - (alpha - 1) * times)
    torch.testing.assert_close(even.diff(), even.diff().mean().expand(7))
    ends = (1.0, last) if name == "euler_maruyama" else (1.0, (alpha / 8) / (1 + (alpha - 1) / 8))
    assert (times[0].item(), times[-1].item()) == pytest.approx(ends)
    assert sampler_times(name, 8, 1.0) == sampler_times(name, 8)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_shifted_samples_have_the_spread_of_the_data(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20_000, 1, 1, 1, generator=generator, dtype=torch.float64)
    noise = lambda i, x: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
    samples = SAMPLERS[name](to_gaussian, x, 100, noise=noise, shift=3.0)
    assert samples.std().item() == pytest.approx(0.5, rel=0.04)


def test_guidance_applies_only_inside_its_interval() -> None:
    class Network:
        def __call__(self, x, times, y):
            return type("P", (), {"velocity": y.float()[:, None, None, None].expand_as(x)})

    y = torch.tensor([2, 3])
    field = velocity_field(Network(), y, null=9, scale=3.0, low=0.2, high=0.7)
    x = torch.zeros(2, 1, 1, 1)
    assert field(x, 0.5).flatten().tolist() == [9 + 3 * (2 - 9), 9 + 3 * (3 - 9)]
    assert field(x, 0.1).flatten().tolist() == field(x, 0.9).flatten().tolist() == [2, 3]
    assert velocity_field(Network(), y, null=9)(x, 0.5).flatten().tolist() == [2, 3]


def test_sde_requests_noise_for_each_step_in_order() -> None:
    steps = []
    euler_maruyama(
        lambda x, t: x, torch.ones(1, 1, 1, 1), 5, noise=lambda i, x: steps.append(i) or torch.zeros_like(x)
    )
    assert steps == [0, 1, 2, 3]


def test_sde_with_one_step_is_one_drift_step_from_time_1() -> None:
    """Computed by hand from REPA's samplers.py, whose last step starts at the last time; here that is 1."""
    x = torch.ones(2, 1, 2, 2, dtype=torch.float64)
    found = euler_maruyama(
        lambda x, t: 2 * x, x, 1, noise=lambda i, x: torch.zeros_like(x), dtype=torch.float64
    )
    velocity, t = 2.0, 1.0
    drift = velocity - t * (-(1.0 + (1 - t) * velocity) / t)
    assert torch.allclose(found, x - drift)
