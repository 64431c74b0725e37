"""Power, pilots, self-tests, families and survival curves, against scipy's distributions, simulation and
closed forms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from harness.errors import UserError
from reports.audit.decision import decide, holm, p_values
from reports.audit.inputs.csv_curves import read_tidy
from reports.audit.pilot import read_pilot
from reports.cli.audit import audit as command
from reports.stats.power import detectable, detectable_with, pairs_needed, spread_of
from reports.stats.speedup import Time, speedup
from reports.stats.survival import kaplan_meier, mean_until
from tests.reports.audits import claim, rows, write_csv


@pytest.mark.parametrize(
    ("sd", "factors"),
    [(0.05, {2: 1.78, 3: 1.18, 5: 1.09, 10: 1.05}), (0.10, {2: 3.2, 3: 1.39, 5: 1.18, 10: 1.11})],
)
def test_detectable_factors_equal_the_reference(sd: float, factors: dict[int, float]) -> None:
    for n, factor in factors.items():
        assert detectable_with(n, sd, 0.95) == pytest.approx(factor, rel=0.01)


@pytest.mark.parametrize("n", [3, 5, 12])
def test_detectable_factor_has_80_percent_power(n: int) -> None:
    sd = 0.08
    d = np.random.default_rng(n).normal(math.log(detectable_with(n, sd, 0.95)), sd, (20_000, n))
    low = d.mean(axis=1) - stats.t.ppf(0.975, n - 1) * d.std(axis=1, ddof=1) / math.sqrt(n)
    assert np.mean(low > 0) == pytest.approx(0.80, abs=0.01)


def power_of(n: int, distance: float, sd: float, paired: bool) -> float:
    free = n - 1 if paired else 2 * n - 2
    noncentrality = distance * math.sqrt(n) / sd
    critical = stats.t.ppf(0.975, free)
    return 1.0 if noncentrality > 30 + critical else float(stats.nct.sf(critical, free, noncentrality))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(distance=st.floats(0.01, 1), sd=st.floats(0.01, 0.5), paired=st.booleans())
def test_pairs_needed_is_the_smallest_sufficient_number(distance: float, sd: float, paired: bool) -> None:
    n = pairs_needed(distance, sd, 0.95, paired=paired)
    if n is None:
        assert power_of(1000, distance, sd, paired) < 0.8
        return
    assert power_of(n, distance, sd, paired) >= 0.8 - 1e-6
    assert n == 2 or power_of(n - 1, distance, sd, paired) < 0.8 + 1e-6


def test_pairs_needed_is_minimal_without_spread() -> None:
    assert pairs_needed(0.1, 0.0, 0.95) == 2 and pairs_needed(0.0, 0.1, 0.95) is None
    assert detectable_with(3, 0.0, 0.95) == 1


@pytest.mark.parametrize("n", [2, 3, 7, 50, 400, 1000])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_noncentrality_equals_scipys_inverse(n: int, confidence: float) -> None:
    """The reference is scipy's other implementation of the distribution."""
    shift = math.log(detectable_with(n, 0.1, confidence)) * math.sqrt(n) / 0.1
    assert stats.nct.sf(stats.t.ppf((1 + confidence) / 2, n - 1), n - 1, shift) == pytest.approx(
        0.8, abs=1e-4
    )


@pytest.mark.parametrize("degrees", [1, 2])
def test_noncentrality_at_extreme_confidence_agrees_with_its_integral(degrees: int) -> None:
    """The reference integrates the distribution; scipy's inverse takes minutes there."""
    critical = stats.t.isf(5e-8, degrees)
    shift = math.log(detectable(1e-9, degrees, 1 - 1e-7)) / 1e-9

    def below(v: float) -> float:
        return stats.chi2.pdf(v, degrees) * stats.norm.cdf(critical * math.sqrt(v / degrees) - shift)

    power = 1 - integrate.quad(below, 0, 40, limit=500, points=[0.1, 1.0, 2.0])[0]
    assert power == pytest.approx(0.8, abs=1e-4)


def test_spread_interval_covers_the_truth() -> None:
    d = np.random.default_rng(4).normal(0, 0.07, (3000, 5))
    found = [spread_of(row) for row in d]
    assert np.mean([one.low <= 0.07 <= one.high for one in found]) == pytest.approx(0.95, abs=0.015)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    mean=st.floats(-1, 1),
    sd=st.floats(0.005, 0.4),
    n=st.integers(2, 9),
    factor=st.floats(0.5, 3),
    kind=st.sampled_from(["at_least", "equal"]),
    never=st.sampled_from(["", "base", "cand", "both"]),
    seed=st.integers(0, 99),
)
def test_p_values_agree_with_the_verdict(mean, sd, n, factor, kind, never, seed) -> None:
    """A verdict is supported or refuted exactly if its p-value is at most 5 %, open ends included."""
    rng = np.random.default_rng(seed)
    base = {i: Time(float(t)) for i, t in enumerate(np.exp(rng.normal(mean, sd, n)))}
    cand = {i: Time(float(t)) for i, t in enumerate(np.exp(rng.normal(0, sd, n)))}
    if never in ("base", "both"):
        base[0] = Time(base[0].value, "right")
    if never in ("cand", "both"):
        cand[1] = Time(cand[1].value, "right")
    judged_claim, gain = claim(factor=factor, kind=kind), speedup(base, cand)
    support, refute = p_values(judged_claim, gain)
    verdict = decide(judged_claim, gain)
    assert (verdict == "supported") == (support <= 0.05) and (verdict == "refuted") == (refute <= 0.05)


def test_p_value_equals_scipys() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(1, 0.1, 6), rng.normal(0.3, 0.1, 6)
    gain = speedup(*({i: Time(math.exp(t)) for i, t in enumerate(logs)} for logs in (a, b)))
    judged_claim = claim(factor=1.9)
    reference = stats.ttest_1samp(a - b, math.log(judged_claim.low), alternative="greater").pvalue
    assert p_values(judged_claim, gain)[0] == pytest.approx(2 * reference)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_equals_its_step_down_definition(p: list[float]) -> None:
    """Compare the smallest p with alpha / m, the next with alpha / (m - 1), ... until one is larger."""
    for alpha in (0.05, 0.3):
        rejected, order = set(), sorted(range(len(p)), key=lambda i: p[i])
        for k, i in enumerate(order):
            if p[i] * (len(p) - k) > alpha:
                break
            rejected.add(i)
        assert {i for i, one in enumerate(holm(p)) if one <= alpha} == rejected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=12))
def test_kaplan_meier_equals_scipys(runs: list[tuple[int, bool]]) -> None:
    times = [Time(float(t), "right" if lost else None) for t, lost in runs]
    reached = [t for t, lost in runs if not lost]
    lost = [t for t, lost in runs if lost]
    found = dict(kaplan_meier(times))
    assert found.keys() == {0.0, *map(float, reached)}
    if reached:
        reference = stats.ecdf(stats.CensoredData(uncensored=reached, right=lost)).cdf
        for at, share in found.items():
            assert share == pytest.approx(float(reference.evaluate(at)), abs=1e-12)


def test_restricted_mean_equals_the_mean_of_censored_times() -> None:
    values = [3.0, 5.0, 8.0, 20.0]
    assert mean_until(
        [Time(min(v, 10.0), "right" if v > 10 else None) for v in values], 10.0
    ) == pytest.approx(np.mean(np.minimum(values, 10)))


def arms(folder: Path, **more) -> dict:
    file = write_csv(folder / "curves.csv", rows({"old": 1.0, "new": 2.0}, **more))
    return read_tidy(file, ("old", "new"), "fid").runs


def test_pilot_measures_the_spread_of_pairs_and_of_one_arm(tmp_path: Path) -> None:
    runs = arms(tmp_path, noise=0.05)
    logs = {n: np.log([log.curve.measured[0] ** 2 for log in own.values()]) for n, own in runs.items()}
    pairs = read_pilot(runs, "steps", 12.0, 0.95)
    assert pairs.spread.sd == pytest.approx((logs["old"] - logs["new"]).std(ddof=1)) and pairs.spread.paired
    assert pairs.detectable[5][0] == pytest.approx(detectable_with(5, pairs.spread.sd, 0.95))
    alone = read_pilot({"old": runs["old"]}, "steps", 12.0, 0.95)
    assert (
        alone.spread.sd == pytest.approx(logs["old"].std(ddof=1) * math.sqrt(2)) and not alone.spread.paired
    )


def test_pilot_without_enough_runs_or_crossings_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two seeds that both methods have; there are 1"):
        read_pilot(arms(tmp_path, seeds=[0]), "steps", 12.0, 0.95)
    with pytest.raises(UserError, match="does not reach 1: choose a target"):
        read_pilot(arms(tmp_path), "steps", 1.0, 0.95)
    with pytest.raises(UserError, match="does not record flops"):
        read_pilot(arms(tmp_path), "flops", 12.0, 0.95)


def run(*words: str) -> dict:
    found = CliRunner().invoke(command, [*words, "--json"], catch_exceptions=False)
    assert found.exit_code == 0
    return json.loads(found.stdout)


def test_power_command_prints_factors_and_seeds(tmp_path: Path) -> None:
    arms(tmp_path, noise=0.05)
    words = ["power", str(tmp_path / "curves.csv"), "--method", "old", "--metric", "fid", "--target", "12"]
    found = run(*words, "--candidate", "new", "--factor", "1.1")
    assert [row["n"] for row in found["detectable"]] == list(range(2, 21))
    printed = {row["n"]: row["factor"] for row in found["detectable"]}
    assert printed[found["seeds"]] <= 1.1 < printed[found["seeds"] - 1]
    text = CliRunner().invoke(command, words, catch_exceptions=False).stdout
    assert "seeds per arm, unpaired" in text and max(map(len, text.splitlines())) <= 80
    # The only metric of a file needs no name.
    assert run(*words[:4], *words[6:]) == run(*words)


def test_selftest_command_prints_the_noise_floor(tmp_path: Path) -> None:
    arms(tmp_path, seeds=range(8), noise=0.05)
    words = ["selftest", str(tmp_path / "curves.csv"), "--method", "old", "--metric", "fid", "--target", "12"]
    found = run(*words)
    assert found["seeds"] == [[0, 2, 4, 6], [1, 3, 5, 7]] and found["holds"]
    assert found["noise_floor"] == pytest.approx(math.sqrt(found["high"] / found["low"]))
    assert "contains 1" in CliRunner().invoke(command, words).stdout
    arms(tmp_path, seeds=range(3))
    few = CliRunner().invoke(command, words)
    assert isinstance(few.exception, UserError) and "at least 4" in str(few.exception)
    default = run(*words[:-2]) if arms(tmp_path, seeds=range(4)) else {}
    assert default["target"] > 0


def test_selftest_interval_contains_1_in_95_percent() -> None:
    from benchmarks.simulated_audits import TARGET, World, logs_of, simulate
    from reports.audit.selftest import run_selftest

    world = World(n=6, truth=1.0)
    base, _ = simulate(world, 1000)
    found = [run_selftest(logs_of(world.grid, one, one).baseline, "steps", TARGET, 0.95) for one in base]
    assert np.mean([one.holds for one in found]) == pytest.approx(0.95, abs=0.02)
