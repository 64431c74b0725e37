"""Rank correlations and slopes against scipy, brute force, normal equations and simulated coverage."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from reports.stats.correlation import _interval, slope, spearman


@pytest.mark.parametrize("n", [4, 6, 9, 12])
def test_rho_equals_scipys_with_and_without_ties(n: int) -> None:
    rng = np.random.default_rng(n)
    for digits in (0, 6):
        x, y = rng.normal(size=n).round(digits), rng.normal(size=n).round(digits)
        assert spearman(x, y).rho == pytest.approx(stats.spearmanr(x, y).statistic)


def test_p_counts_all_orders_and_equals_scipys_above_eight_points() -> None:
    x, y = [1, 2, 3, 4, 5], [2, 1, 4, 3, 5]
    own = abs(stats.spearmanr(x, y).statistic)
    reached = [abs(stats.spearmanr(x, order).statistic) >= own - 1e-9 for order in permutations(y)]
    assert spearman(x, y).p == pytest.approx(np.mean(reached))
    assert spearman([1, 2, 3, 4], [1, 2, 3, 4]).p == pytest.approx(2 / 24)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 15))
    assert spearman(x, y).p == pytest.approx(stats.spearmanr(x, y).pvalue)


def test_range_leaves_each_point_out_once() -> None:
    x, y = [1, 2, 3, 4, 5], [1, 2, 3, 4, 0]
    found = spearman(x, y)
    each = [stats.spearmanr(np.delete(x, i), np.delete(y, i)).statistic for i in range(5)]
    assert found.without == pytest.approx((min(each), max(each))) and found.without[1] == 1


def test_interval_covers_the_truth() -> None:
    """The truth for normal pairs is a Spearman correlation of 6 / pi asin(r / 2)."""
    rng, repeats = np.random.default_rng(3), 2000
    for n, r in ((8, 0.0), (8, 0.6), (16, 0.6)):
        truth = 6 / math.pi * math.asin(r / 2)
        draws = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], size=(repeats, n))
        ranks = draws.argsort(axis=1).argsort(axis=1) - (n - 1) / 2
        rhos = (ranks[..., 0] * ranks[..., 1]).sum(axis=1) * 12 / (n**3 - n)
        ends = [_interval(rho, n, 0.95) for rho in rhos]
        covered = np.mean([low <= truth <= high for low, high in ends])
        assert 0.93 <= covered <= 0.975, (n, r, covered)


def test_perfect_order_has_a_high_end_of_1_and_a_finite_low_end() -> None:
    """Four ordered points are too few to exclude a rho of 0; twenty are enough."""
    four, twenty = spearman(range(4), range(4)), spearman(range(20), range(20))
    assert four.rho == 1 and four.high == 1 and four.low < 0
    assert twenty.high == 1 and 0.98 < twenty.low < 1
    down = spearman(range(4), [3, 2, 1, 0])
    assert (down.rho, down.low, down.high) == pytest.approx((-1, -1, -four.low))


def test_too_few_points_have_no_rho() -> None:
    assert spearman([1, 2], [1, 2]).rho is None
    assert spearman([1, 1, 1, 1], [1, 2, 3, 4]).rho is None
    three = spearman([1, 2, 3], [1, 2, 3])
    assert three.rho == 1 and three.low is None and three.without is None


def test_slope_is_least_squares_with_a_constant_per_seed() -> None:
    rng = np.random.default_rng(5)
    x, seeds = np.tile([1.0, 2, 4, 7], 3), np.repeat([0, 1, 2], 4)
    y = 0.3 * x + np.array([0, 5, -2])[seeds] + rng.normal(0, 0.1, 12)
    design = np.column_stack([x, *(seeds == s for s in range(3))]).astype(float)
    beta, rest, *_ = np.linalg.lstsq(design, y, rcond=None)
    error = math.sqrt(rest[0] / 8 * np.linalg.inv(design.T @ design)[0, 0])
    low, high = stats.t.interval(0.95, 8, beta[0], error)
    found = slope(x, y, seeds)
    assert (found.estimate, found.low, found.high) == pytest.approx((beta[0], low, high))
    assert (found.n, found.seeds) == (12, 3)


def test_slope_needs_varying_x_and_degrees_of_freedom() -> None:
    assert slope([1, 1, 1], [1, 2, 3], [0, 1, 2]) is None
    two = slope([1, 2], [1, 3], [0, 0])
    assert two.estimate == 2 and two.low is None
