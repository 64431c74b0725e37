"""Error rates of audits, by simulation through their own functions; tolerances are Monte-Carlo errors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.operating_characteristics import TABLE, coverages, isotonic, table
from benchmarks.simulated_audits import (
    TARGET,
    World,
    autocorrelated,
    claim_of,
    gain_of,
    gains,
    heavy,
    logs_of,
    metric,
    simulate,
    verdicts,
)
from reports.audit.audit import audit_claim
from reports.audit.curve_shape import dual_speedup
from reports.audit.decision import decide

AUDITS = 1500
PUBLISHED = {  # supported / refuted / inconclusive at n = 3 and n = 5: the project's reference table
    "truth 2.0x": ((0.78, 0.00, 0.22), (1.00, 0.00, 0.00)),
    "truth 1.82x (edge: false support)": ((0.023, 0.03, 0.95), (0.023, 0.03, 0.94)),
    "truth 1.5x": ((0.00, 1.00, 0.00), (0.00, 1.00, 0.00)),
    "truth 2.0x, eval noise 5%": ((0.23, 0.00, 0.77), (0.49, 0.00, 0.51)),
    "half of baselines censored, truth 2.0x": ((0.69, 0.00, 0.31), (0.99, 0.00, 0.01)),
    "half censored, truth 1.82x": ((0.006, 0.01, 0.98), (0.003, 0.005, 0.99)),
    "all baselines censored at 180k, claim 1.5x, truth 2x": ((1.00, 0.00, 0.00), (1.00, 0.00, 0.00)),
}


REPRESENTATIVE = ("truth 2.0x", "truth 1.82x (edge: false support)", "half of baselines censored, truth 2.0x")


@pytest.mark.parametrize(
    "name",
    [name if name in REPRESENTATIVE else pytest.param(name, marks=pytest.mark.slow) for name in TABLE],
)
def test_verdict_rates_equal_the_reference_table(name: str) -> None:
    """Both sides are shares of 1500 audits, so they differ by at most three standard errors and rounding."""
    factor, world = TABLE[name]
    for n, reference in zip((3, 5), PUBLISHED[name], strict=True):
        found = verdicts(gains(replace(world, n=n), AUDITS), factor)
        for share, expected in zip(found.values(), reference, strict=True):
            error = math.sqrt(2 * max(expected * (1 - expected), 0.002) / AUDITS)
            assert share == pytest.approx(expected, abs=3 * error + 0.005), (n, found)


def test_benchmark_table_has_the_rows_of_the_reference() -> None:
    assert list(table(2)) == list(PUBLISHED)


@pytest.mark.parametrize(
    ("n", "audits"),
    [
        (3, 2500),
        pytest.param(3, 6000, marks=pytest.mark.slow),
        pytest.param(5, 5000, marks=pytest.mark.slow),
        pytest.param(10, 4000, marks=pytest.mark.slow),
    ],
)
def test_intervals_cover_the_truth_and_rarely_support_a_false_claim(n: int, audits: int) -> None:
    """94 to 96 % of intervals contain the truth.

    At the edge of a claim at most 2.5 % support it, plus two standard errors.
    """
    found = coverages(audits, World(), (n,))[f"n={n}"]
    assert 0.94 <= found["coverage"] <= 0.96
    assert found["false support"] <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / audits)
    assert found["bias"] == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize(
    ("shape", "eval_sd"),
    [
        (heavy, 0.01),
        pytest.param(autocorrelated, 0.01, marks=pytest.mark.slow),
        pytest.param(autocorrelated, 0.05, marks=pytest.mark.slow),
        pytest.param(heavy, 0.05, marks=pytest.mark.slow),
    ],
)
def test_coverage_holds_with_heavy_tails_and_autocorrelation(shape, eval_sd: float) -> None:
    """Heavy tails and autocorrelation of evaluations cost precision, not coverage."""
    found = coverages(3000, World(evaluations=shape, eval_sd=eval_sd), (5,))["n=5"]
    assert 0.935 <= found["coverage"] <= 0.965
    assert found["false support"] <= 0.025 + 2.5 * math.sqrt(0.025 * 0.975 / 3000)


def test_unequal_grids_cause_no_speedup() -> None:
    """One curve, evaluated every 25k and every 2k steps: 1.00 -+ 0.01."""
    means = []
    for every in (25_000.0, 2_000.0):
        world = World(n=1, seed_sd=0.0, eval_sd=0.03, every=every)
        base, _ = simulate(world, 1200)
        means.append(np.mean([math.log(isotonic(world.grid, row[0])) for row in base]))
    assert math.exp(means[0] - means[1]) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("steps", [180_000.0, pytest.param(200_000.0, marks=pytest.mark.slow)])
def test_censored_low_ends_keep_their_coverage(steps: float) -> None:
    """The low end of a shortened race is above the truth in no more than 2.5 % of audits."""
    found = gains(World(steps=steps, n=5), 1500)
    assert all(one.censored_baseline <= 5 for one in found)
    assert np.mean([one.low > 2.0 for one in found]) <= 0.025
    assert np.mean([math.isinf(one.high) for one in found]) > 0.9


def test_censored_candidates_refute_no_true_claim() -> None:
    """In the mirror image the candidate does not reach the target in time, and the high end holds."""
    found = gains(World(truth=0.5, steps=400_000.0, n=5), 800)
    assert np.mean([one.high < 0.5 for one in found]) <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / 800)
    assert np.mean([one.low == 0 for one in found]) > 0.9


@pytest.mark.parametrize("world", [World(n=3), World(n=5, eval_sd=0.05)])
def test_dual_check_raises_few_false_alarms(world: World) -> None:
    """On shifted copies it is the speed-up (to 2 %), and disagrees in at most 5 % of audits."""
    base, cand = simulate(world, 200)
    logs = [logs_of(world.grid, b, c) for b, c in zip(base, cand, strict=True)]
    found = [dual_speedup(one, 0.95) for one in logs]
    assert np.exp(np.mean([math.log(one.gain.estimate) for one in found])) == pytest.approx(2, rel=0.02)
    assert np.mean([not one.agrees(gain_of(log)) for one, log in zip(found, logs, strict=True)]) <= 0.05


def test_simulated_gains_equal_those_of_the_audit() -> None:
    """Simulated gains and verdicts are those of `audit` on the same curves."""
    world, claim = World(), claim_of(2.0)
    base, cand = simulate(world, 25)
    quick = gains(world, 25)
    for b, c, gain in zip(base, cand, quick, strict=True):
        audit = audit_claim(claim, logs_of(world.grid, b, c))
        assert audit.gain == gain and audit.verdict == decide(claim, gain)


def test_simulated_world_has_its_stated_noise() -> None:
    """Noise of 2 % and 1 %, pairs that correlate by 0.7, and a baseline at the target at step 200k."""
    assert metric(200_000.0) == pytest.approx(TARGET)
    world = World(truth=1.0, n=1)
    base, cand = (np.log(arm[:, 0] / metric(world.grid)) for arm in simulate(world, 20_000))
    assert base.std() == pytest.approx(math.hypot(0.02, 0.01), rel=0.02)
    assert np.mean(base.mean(axis=1) * cand.mean(axis=1)) == pytest.approx(0.7 * 0.02**2, rel=0.03)
    for shape in (heavy, autocorrelated):
        assert shape(np.random.default_rng(0), (200_000, 3)).std() == pytest.approx(1, rel=0.03)
