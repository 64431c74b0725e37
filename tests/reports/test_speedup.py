"""Speed-ups and intervals, against scipy's tests, the definition of censoring, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reports.stats.crossing import crossing
from reports.stats.curves import fit
from reports.stats.speedup import Time, mean_time, speedup

TIMES = st.lists(st.floats(1, 1e6), min_size=2, max_size=10, unique=True)


def by_seed(values, censored=None) -> dict[int, Time]:
    return {seed: Time(value, censored) for seed, value in enumerate(values)}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(base=TIMES, seed=st.integers(0, 99))
def test_paired_interval_equals_scipys(base: list[float], seed: int) -> None:
    cand = np.array(base) * np.exp(np.random.default_rng(seed).normal(0.2, 0.3, len(base)))
    found = speedup(by_seed(base), by_seed(cand))
    reference = stats.ttest_rel(np.log(base), np.log(cand)).confidence_interval(0.95)
    assert found.paired and found.n == len(base)
    assert (found.low, found.high) == pytest.approx(
        (math.exp(reference.low), math.exp(reference.high)), rel=1e-9
    )
    assert found.estimate == pytest.approx(stats.gmean(base) / stats.gmean(cand))
    if len(base) >= 3:
        assert found.correlation == pytest.approx(
            stats.pearsonr(np.log(base), np.log(cand)).statistic, abs=1e-9
        )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(base=TIMES, cand=TIMES)
def test_unpaired_interval_equals_welchs(base: list[float], cand: list[float]) -> None:
    found = speedup(by_seed(base), {seed + 100: time for seed, time in by_seed(cand).items()})
    reference = stats.ttest_ind(np.log(base), np.log(cand), equal_var=False).confidence_interval(0.95)
    assert not found.paired and found.correlation is None
    assert (found.low, found.high) == pytest.approx(
        (math.exp(reference.low), math.exp(reference.high)), rel=1e-9
    )


def test_mean_time_is_a_t_interval_of_logs() -> None:
    values = [100.0, 130.0, 90.0, 111.0]
    found = mean_time(by_seed(values).values())
    logs = np.log(values)
    low, high = stats.t.interval(0.95, 3, loc=logs.mean(), scale=stats.sem(logs))
    assert found.estimate == pytest.approx(stats.gmean(values))
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))


def test_pairs_are_the_shared_seeds() -> None:
    base = {0: Time(100.0), 1: Time(110.0), 2: Time(5000.0)}
    cand = {0: Time(50.0), 1: Time(55.0), 3: Time(1.0)}
    found = speedup(base, cand)
    assert found.n == 2 and found.estimate == pytest.approx(2) and found.low == pytest.approx(2)


@pytest.mark.parametrize(
    ("base", "cand"), [([100.0], [50.0]), ([100.0], [50.0, 60.0]), ([100.0, 120.0], [50.0])]
)
def test_one_run_has_no_interval(base: list[float], cand: list[float]) -> None:
    found = speedup(by_seed(base), by_seed(cand))
    assert found.n == 1 and found.estimate == pytest.approx(2)
    assert found.low is None and found.high is None and found.direction == "unresolved"
    alone = speedup({7: Time(100.0)}, {8: Time(50.0), 9: Time(50.0)})
    assert alone.low is None and alone.estimate == pytest.approx(2)


def test_times_are_censored_at_the_horizon() -> None:
    """A baseline that reaches the target after the horizon counts as not reaching it."""
    late = speedup(by_seed([1000.0, 4000.0]), by_seed([500.0, 500.0]), horizon=2000)
    never = speedup({0: Time(1000.0), 1: Time(2000.0, "right")}, by_seed([500.0, 500.0]), horizon=2000)
    assert late == never
    assert (
        late.estimate == pytest.approx(math.sqrt(2 * 4))
        and late.high == math.inf
        and late.censored_baseline == 1
    )


def test_censoring_opens_the_end_that_it_does_not_bound() -> None:
    base, cand = by_seed([100.0, 110.0, 105.0]), by_seed([50.0, 60.0, 52.0])
    plain = speedup(base, cand)
    for side, arm, low, high in (
        ("right", "base", plain.low, math.inf),
        ("right", "cand", 0.0, plain.high),
        ("left", "base", 0.0, plain.high),
        ("left", "cand", plain.low, math.inf),
    ):
        b = base | ({1: Time(110.0, side)} if arm == "base" else {})
        c = cand | ({1: Time(60.0, side)} if arm == "cand" else {})
        found = speedup(b, c)
        assert (found.low, found.high, found.estimate) == (low, high, plain.estimate), (side, arm)
    both = speedup(base | {1: Time(110.0, "right")}, cand | {2: Time(52.0, "right")})
    assert (both.low, both.high) == (0.0, math.inf) and both.direction == "unresolved"
    assert (both.censored_baseline, both.censored_candidate) == (1, 1)


def test_speedup_is_none_when_every_pair_is_censored_twice() -> None:
    for kind in ("right", "left"):
        found = speedup(by_seed([100.0, 100.0], kind), by_seed([100.0, 100.0], kind))
        assert found.estimate is None and found.low is None and found.direction == "unresolved"
    one_known = speedup(by_seed([100.0, 100.0], "right"), {0: Time(50.0), 1: Time(100.0, "right")})
    assert one_known.estimate == pytest.approx(math.sqrt(2)) and (one_known.low, one_known.high) == (
        0.0,
        math.inf,
    )


def test_direction_follows_from_the_interval() -> None:
    assert speedup(by_seed([100, 101, 99]), by_seed([50, 51, 49])).direction == "faster"
    assert speedup(by_seed([50, 51, 49]), by_seed([100, 101, 99])).direction == "slower"
    assert speedup(by_seed([50, 100, 75]), by_seed([75, 51, 99])).direction == "unresolved"


def test_censored_low_ends_keep_their_coverage() -> None:
    """The low end of a shortened race is below the truth in at least 97.5 % of cases, as in a full race."""
    rng, truth, held = np.random.default_rng(5), 2.0, 0
    for _ in range(2000):
        shared = rng.normal(0, 0.05, 5)
        base = 1000 * np.exp(shared + rng.normal(0, 0.03, 5))
        cand = 1000 / truth * np.exp(shared + rng.normal(0, 0.03, 5))
        cut = {i: Time(min(t, 1000.0), "right" if t > 1000 else None) for i, t in enumerate(base)}
        found = speedup(cut, by_seed(cand), horizon=1000.0)
        held += found.low is None or found.low <= truth
    assert held / 2000 >= 0.97


def times_to_target(
    rng: np.random.Generator, truth: float, shared: np.ndarray, grid: np.ndarray
) -> np.ndarray:
    """Return the times at which runs of 8 + 300 (truth s)^-0.9 with log-normal noise reach 12."""
    seeds = shared + rng.normal(0, 0.011, shared.shape)
    curves = (8 + 300 * (truth * grid / 1000) ** -0.9) * np.exp(
        seeds[:, None] + rng.normal(0, 0.01, (len(seeds), len(grid)))
    )
    found = [crossing(fit(grid, curve), 12.0) for curve in curves]
    assert all(one.censored is None for one in found)
    return np.array([one.step for one in found])


@pytest.mark.parametrize("n", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_intervals_from_noisy_curves_cover_the_truth(n: int) -> None:
    """95 % intervals contain the truth in 94 to 96 % of cases, and the estimate is right to 1 %.

    Curves have seed noise (2 %, partly shared by pairs) and evaluation noise (1 %), every 25k of 400k steps.
    """
    rng, repeats, truth = np.random.default_rng(11), 4000, 2.0
    shared = rng.normal(0, 0.0167, repeats * n)
    grid = np.arange(5_000.0, 400_001.0, 25_000.0)
    base, cand = (times_to_target(rng, k, shared, grid).reshape(repeats, n) for k in (1.0, truth))
    found = [speedup(by_seed(b), by_seed(c)) for b, c in zip(base, cand, strict=True)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.94 <= covered <= 0.96
    assert np.exp(np.mean([math.log(one.estimate) for one in found])) == pytest.approx(truth, rel=0.01)


def test_unequal_grids_cause_no_speedup() -> None:
    """Arms that differ only in their grid (every 2k or every 25k steps) have a speed-up of 1.00 -+ 0.01.

    By first raw values, the densely evaluated arm would be faster; this is checked too.
    """
    rng, runs = np.random.default_rng(2), 600
    dense, sparse = np.arange(1_000.0, 200_001.0, 2_000.0), np.arange(1_000.0, 200_001.0, 25_000.0)

    def curves(grid: np.ndarray) -> np.ndarray:
        return (8 + 300 * (grid / 1000) ** -0.9) * np.exp(rng.normal(0, 0.03, (runs, len(grid))))

    fitted, raw = {}, {}
    for name, grid in (("dense", dense), ("sparse", sparse)):
        values = curves(grid)
        fitted[name] = np.mean([math.log(crossing(fit(grid, row), 16.0).step) for row in values])
        raw[name] = np.mean(np.log(grid[(values <= 16.0).argmax(axis=1)]))
    assert math.exp(fitted["sparse"] - fitted["dense"]) == pytest.approx(1.0, abs=0.01)
    assert math.exp(raw["sparse"] - raw["dense"]) > 1.05
