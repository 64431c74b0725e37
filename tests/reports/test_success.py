"""Statistics of success, compared with scipy, numerical likelihoods, enumeration and simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, multinomial, t

from metrics.intervals import Z, share
from reports.stats.success import (
    difference_levels,
    mcnemar,
    paired,
    score_interval,
    success_levels,
)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (0, 6), (5, 12), (20, 20), (31, 9)])
def test_mcnemar_equals_the_binomial_test_of_scipy(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-12)


def test_pairs_count_the_starts_at_which_only_one_arm_succeeds() -> None:
    first = [True, True, False, False, True, True]
    second = [True, False, False, True, False, False]
    found = paired(first, second)
    assert (found.n, found.only_first, found.only_second) == (6, 3, 1)
    assert found.difference == pytest.approx(np.mean(first) - np.mean(second))
    swapped = paired(second, first)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))
    assert swapped.p == found.p


def test_equal_arms_differ_by_0() -> None:
    found = paired([True, False] * 10, [True, False] * 10)
    assert found.difference == 0 and found.p == 1 and found.low < 0 < found.high


@pytest.mark.parametrize(("b", "c", "n"), [(9, 2, 50), (0, 5, 30), (0, 0, 40), (7, 7, 14), (1, 0, 44)])
def test_score_is_z_at_the_ends_with_a_numerically_maximised_likelihood(b: int, c: int, n: int) -> None:
    for end, side in zip(score_interval(b, c, n), (1, -1), strict=True):

        def unlikely(q: float, end: float = end) -> float:
            cells = ((b, q + end), (c, q), (n - b - c, 1 - 2 * q - end))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

        bounds = (max(0.0, -end), (1 - end) / 2)
        # Any: scipy's result, and an interval whose ends exist.
        best: Any = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-13})
        variance = n * (2 * best.x + end - end**2)
        assert side * (b - c - n * end) / math.sqrt(variance) == pytest.approx(Z, rel=2e-4)


def test_interval_without_discordant_starts_is_wilsons_of_no_success() -> None:
    low, high = score_interval(0, 0, 40)
    expected: Any = share(np.zeros(40), 40).high
    assert high == pytest.approx(expected, rel=1e-6) and low == pytest.approx(-expected, rel=1e-6)


def test_interval_of_arms_that_differ_at_every_start_reaches_1() -> None:
    low, high = score_interval(12, 0, 12)
    assert high == 1 and 0.5 < low < 1
    assert score_interval(0, 12, 12) == pytest.approx((-1, -low))


@pytest.mark.parametrize("cells", [(0.2, 0.05), (0.4, 0.1), (0.1, 0.1), (0.02, 0.3)])
def test_coverage_of_the_score_interval_is_that_of_its_level(cells: tuple[float, float]) -> None:
    """All outcomes of 25 starts are enumerated."""
    n, truth = 25, cells[0] - cells[1]
    outcomes = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    rest = 1 - sum(cells)
    covered = 0.0
    for b, c in outcomes:
        chance = float(multinomial.pmf((b, c, n - b - c), n, (*cells, rest)))
        # The rest of the mass is below a thousandth.
        if chance > 1e-6:
            low, high = score_interval(b, c, n)
            covered += chance * (low <= truth <= high)
    assert 0.93 < covered < 0.98


def simulated(
    rng: np.random.Generator, seeds: int, starts: int, seed_sd: float, start_sd: float
) -> np.ndarray:
    """Draw successes whose chance is 0.5 plus an effect of the seed and one of the start."""
    of_seeds = rng.normal(0, seed_sd, (seeds, 1))
    chance = 0.5 + of_seeds + rng.normal(0, start_sd, (1, starts))
    return rng.random((seeds, starts)) < np.clip(chance, 0, 1)


CASES = [(3, 50, 0.1, 0.2), (5, 50, 0.05, 0.3), (5, 20, 0.15, 0.0)]


@pytest.mark.parametrize(("seeds", "starts", "seed_sd", "start_sd"), CASES)
def test_interval_over_both_levels_covers_the_mean_and_episodes_alone_do_not(
    seeds: int, starts: int, seed_sd: float, start_sd: float
) -> None:
    rng = np.random.default_rng(0)
    inside, naive, runs = 0, 0, 600
    for _ in range(runs):
        y = simulated(rng, seeds, starts, seed_sd, start_sd)
        found = success_levels(y)
        assert found.low is not None and found.high is not None
        inside += found.low <= 0.5 <= found.high
        alone = share(y.ravel(), y.size)
        assert alone.low is not None and alone.high is not None
        naive += alone.low <= 0.5 <= alone.high
    assert inside / runs > 0.92
    assert naive / runs < inside / runs - 0.05


def test_interval_of_a_paired_difference_covers_it_over_both_levels() -> None:
    rng = np.random.default_rng(1)
    inside, runs = 0, 600
    for _ in range(runs):
        effects = 0.6 + rng.normal(0, 0.15, (1, 50))
        gain = 0.2 + rng.normal(0, 0.08, (4, 1))
        second = rng.random((4, 50)) < np.clip(effects - gain, 0, 1)
        first = rng.random((4, 50)) < np.clip(effects, 0, 1)
        found = difference_levels(first, second)
        assert found.low is not None and found.high is not None
        inside += found.low <= 0.2 <= found.high
    assert inside / runs > 0.92


def test_levels_are_estimated_without_bias() -> None:
    rng = np.random.default_rng(2)
    found = [success_levels(simulated(rng, 6, 60, 0.1, 0.2)) for _ in range(300)]
    of_seeds = np.mean([one.seed_sd**2 for one in found if one.seed_sd is not None])
    of_starts = np.mean([one.start_sd**2 for one in found if one.start_sd is not None])
    assert of_seeds == pytest.approx(0.01, rel=0.15) and of_starts == pytest.approx(0.04, rel=0.15)


def test_variance_of_the_mean_adds_both_levels() -> None:
    """Without an interaction the two-way layout is exact: y_se = a_s + b_e."""
    a, b = np.array([[0.0], [1.0], [0.0], [0.0]]), np.array([[0.0, 0.0, -1.0, 0.0, -1.0]])
    found = difference_levels(a, -b)
    assert found.mean == pytest.approx(0.25 - 0.4)
    assert found.seed_sd == pytest.approx(np.std(a, ddof=1))
    assert found.start_sd == pytest.approx(np.std(b, ddof=1))
    va, vb = np.var(a, ddof=1) / 4, np.var(b, ddof=1) / 5
    degrees = (va + vb) ** 2 / (va**2 / 3 + vb**2 / 4)
    half = t.ppf(0.975, degrees) * math.sqrt(va + vb)
    assert found.high == pytest.approx(found.mean + half) and found.low == pytest.approx(found.mean - half)


def test_one_training_seed_has_no_interval_over_seeds() -> None:
    found = success_levels(np.array([[True, False, True]]))
    assert found.mean == pytest.approx(2 / 3) and found.low is found.high is found.seed_sd is None


def test_equal_results_have_the_interval_of_their_starts() -> None:
    found = success_levels(np.ones((3, 50), dtype=bool))
    assert (found.low, found.high) == pytest.approx((50 / (50 + Z**2), 1.0))
    assert binom.pmf(50, 50, found.low) > 0.02


@pytest.mark.parametrize("sign", [1, -1])
def test_equal_differences_have_the_score_interval_of_their_starts(sign: int) -> None:
    all_, none = np.ones((3, 20), dtype=bool), np.zeros((3, 20), dtype=bool)
    found = difference_levels(all_, none) if sign > 0 else difference_levels(none, all_)
    assert (found.low, found.high) == score_interval(*((20, 0) if sign > 0 else (0, 20)), 20)
    equal = difference_levels(all_, all_)
    assert (equal.low, equal.high) == score_interval(0, 0, 20)


def test_arms_that_differ_at_other_starts_by_the_same_share_have_an_interval() -> None:
    """Each network succeeds at one of three starts, and each start is solved by one network."""
    found = difference_levels(np.eye(3, dtype=bool), np.zeros((3, 3), dtype=bool))
    assert (found.low, found.high) == score_interval(1, 0, 3)
