"""FD-infinity: unbiased values, intervals that cover, and invalid inputs."""

from __future__ import annotations

import numpy as np
import pytest

from metrics import MetricError, Moments, frechet_distance, frechet_infinity


def normal(seed: int, n: int, d: int, *, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) * scale + shift


def population(d: int) -> Moments:
    """Return the moments of a standard normal population."""
    n = 10**9
    return Moments.from_arrays({"n": np.asarray(n), "mean": np.zeros(d), "scatter": np.eye(d) * (n - 1)})


@pytest.mark.slow
def test_equal_distributions_have_a_distance_of_0_within_the_error() -> None:
    """The interval covers 0 in at least 95 of 100 pairs of samples of one distribution."""
    draws = [
        frechet_infinity(normal(2 * s, 200, 4), normal(2 * s + 1, 200, 4), points=5, seed=s)
        for s in range(100)
    ]
    means = np.array([v.mean for v in draws])
    assert sum(v.low <= 0 <= v.high for v in draws) >= 95
    assert abs(means.mean()) < 3 * means.std() / 10
    assert np.mean([v.high - v.mean for v in draws]) < 5 * means.std()  # the interval is not too wide


@pytest.mark.parametrize("fixed", [True, False], ids=["real as moments", "real as features"])
def test_known_distance_is_recovered_without_bias(fixed: bool) -> None:
    """d = 16, means that differ by 0.1 and deviations 1 and 1.1 per dimension: FD = 16 * (0.01 + 0.01)."""
    plain, found = [], []
    for s in range(30):
        real = population(16) if fixed else normal(2 * s, 300, 16)
        fake = normal(2 * s + 1, 300, 16, scale=1.1, shift=0.1)
        plain.append(frechet_distance(real, fake).mean)
        found.append(frechet_infinity(real, fake, points=6, seed=s))
    means = np.array([v.mean for v in found])
    assert means.mean() == pytest.approx(0.32, abs=3 * means.std() / np.sqrt(30))
    assert abs(means.mean() - 0.32) < 0.2 * (np.mean(plain) - 0.32)
    assert sum(v.low <= 0.32 <= v.high for v in found) >= 26


def test_value_depends_on_the_seed() -> None:
    real, fake = normal(1, 150, 3), normal(2, 120, 3)
    value = frechet_infinity(real, fake, points=4, seed=5)
    again, other = (frechet_infinity(real, fake, points=4, seed=s) for s in (5, 6))
    assert (value.mean, value.low, value.high, value.n) == (again.mean, again.low, again.high, 120)
    assert value != other


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: frechet_infinity(normal(1, 99, 3), normal(2, 200, 3)),
            "real features have 99 rows; at least 100",
        ),
        (lambda: frechet_infinity(normal(1, 200, 3), normal(2, 99, 3)), "fake features have 99 rows"),
        (lambda: frechet_infinity(normal(1, 200, 3), normal(2, 200, 4)), "3 columns on one side and 4"),
        (lambda: frechet_infinity(population(3), normal(2, 200, 4)), "3 columns on one side and 4"),
        (lambda: frechet_infinity(Moments(), normal(2, 200, 4)), "no features have been added"),
        (
            lambda: frechet_infinity(normal(1, 200, 3), normal(2, 200, 3), points=1),
            "points = 1; expected 2 or more",
        ),
    ],
)
def test_invalid_inputs_are_rejected(call, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        call()
