"""Intervals that may be looked at more than once."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.sequential import censored, edge, families, of_curves, recorded_ratios
from reports.stats.sequential import SPENDING, anytime_critical, boundaries
from tests.conftest import ROOT

PATHS = 200_000


def crossed(looks: dict[int, float], mean: float = 0.0) -> np.ndarray:
    """Return, for simulated races, the share that has crossed |T_n| > b_n by each look."""
    rng = np.random.default_rng(20261130)
    last = max(looks)
    x = rng.standard_normal((PATHS, last)) + mean
    out = np.zeros(PATHS, bool)
    shares = []
    for n, critical in looks.items():
        t = np.asarray(stats.ttest_1samp(x[:, :n], 0, axis=1))[0]
        out |= np.abs(t) > critical
        shares.append(out.mean())
    return np.array(shares)


def test_single_look_is_students_interval() -> None:
    for n in (3, 7, 20):
        for alpha in (0.05, 0.01):
            assert boundaries((n,), alpha)[n] == pytest.approx(stats.t.ppf(1 - alpha / 2, n - 1), rel=1e-12)


@pytest.mark.parametrize(
    ("most", "published"),
    [
        # 300,000 simulated paths: the first values are known to about 1 %.
        (6, [6.16, 4.96, 4.04, 3.48]),
        (10, [8.09, 6.13, 4.84, 4.06, 3.63, 3.36, 3.14, 2.99]),
    ],
)
def test_linear_boundaries_agree_with_simulated_ones(most: int, published: list[float]) -> None:
    found = boundaries(tuple(range(3, most + 1)))
    assert list(found.values()) == pytest.approx(published, rel=0.012)


@pytest.mark.parametrize(
    "spending",
    [name if name == "linear" else pytest.param(name, marks=pytest.mark.slow) for name in SPENDING],
)
def test_looks_spend_what_their_function_allows(spending: str) -> None:
    looks = tuple(range(3, 11))
    shares = crossed(dict(boundaries(looks, 0.05, spending)))
    allowed = [SPENDING[spending](n / 10, 0.05) for n in looks]
    assert shares == pytest.approx(allowed, abs=4 * math.sqrt(0.05 / PATHS))
    assert allowed[-1] == pytest.approx(0.05)


def test_unequal_looks_spend_alpha() -> None:
    shares = crossed(dict(boundaries((6, 7, 12), 0.02)))
    assert shares[-1] == pytest.approx(0.02, abs=4 * math.sqrt(0.02 / PATHS))


@pytest.mark.parametrize(
    "most", [20, pytest.param(60, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.slow)]
)
def test_first_looks_that_may_spend_almost_nothing_decide_nothing(most: int) -> None:
    """Their values are huge, or infinite below the precision of floating point."""
    found = list(boundaries((3, 4, most), 0.05, "obrien_fleming").values())
    assert min(found[:2]) > 50
    assert found[2] == pytest.approx(stats.t.ppf(0.975, most - 1), rel=0.01)
    shares = crossed(dict(boundaries((3, 12), 1e-3, "obrien_fleming")))
    assert shares[-1] == pytest.approx(1e-3, abs=4 * math.sqrt(1e-3 / PATHS))


def test_expected_number_of_pairs_is_the_published_one() -> None:
    """At an effect of 3 standard deviations a race of at most 10 pairs ends after 4.2 on average."""
    looks = dict(boundaries(tuple(range(3, 11))))
    shares = crossed(looks, mean=3.0)
    assert 3 + float(np.sum(1 - shares[:-1])) == pytest.approx(4.2, abs=0.05)
    assert crossed(looks, mean=1.5)[-1] == pytest.approx(0.947, abs=0.005)


def test_anytime_values_are_the_published_ones() -> None:
    published = [math.inf, 10.1, 6.8, 5.8, 5.2, 4.9, 4.7, 4.6, 4.4]
    assert [round(anytime_critical(n, 25), 1) for n in range(2, 11)] == published
    assert all(math.isinf(anytime_critical(n, 1)) for n in range(2, 5))


def test_anytime_interval_inverts_the_mixture_martingale() -> None:
    """At the critical value the e-value of Wang and Ramdas is exactly 1 / alpha."""
    for n, g in ((3, 25.0), (8, 25.0), (12, 4.0)):
        t, rho = anytime_critical(n, g, 0.05), 1 + n * g
        x = t * t / (n - 1)
        e = rho**-0.5 * ((1 + x) / (1 + x / rho)) ** (n / 2)
        assert e == pytest.approx(1 / 0.05)


def test_anytime_interval_is_rarely_wrong_at_any_time() -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((20_000, 60))
    n = np.arange(1, 61)
    mean = x.cumsum(1) / n
    spread = np.sqrt(np.maximum((x * x).cumsum(1) / n - mean**2, 0) * n / np.maximum(n - 1, 1))
    critical = np.array([1e9, *(anytime_critical(k, 25) for k in range(2, 61))])
    wrong = (mean * np.sqrt(n) > critical * spread)[:, 1:].any(1).mean()
    assert 0.005 < wrong <= 0.025 + 3 * math.sqrt(0.025 / 20_000)


@pytest.mark.slow
def test_benchmark_gives_the_figures_of_the_guide() -> None:
    """With a tenth of the races, so within Monte-Carlo errors."""
    found = edge(10_000)
    for most in ("N=3", "N=10", "N=20"):
        assert found["normal"][most]["false support"] == pytest.approx(0.025, abs=0.006)
        assert found["normal"][most]["all intervals contain the truth"] == pytest.approx(0.95, abs=0.009)
    assert found["skewed (log-normal 0.5), long tail below"]["N=10"]["false support"] > 0.08
    assert families(20_000)["4 claims"] <= 0.025 + 0.007
    # Cutting baselines at a horizon makes a support harder.
    assert max(censored(10_000).values()) <= 0.025 + 0.006


@pytest.mark.slow
def test_early_ends_keep_coverage_and_false_support_of_races_on_curves() -> None:
    """With fewer races, so within Monte-Carlo errors; half of the baselines censored support less."""
    found = of_curves(600)
    for name, row in found.items():
        assert row["false support"] <= 0.025 + 4 * math.sqrt(0.025 / 600), name
        ended = "until decided" in name
        assert (row["share of steps"] < 0.9) == ended, name
    for name in ("seed noise 2 %, evaluation noise 1 %, correlation 0.7", "evaluation noise 5 %"):
        early, full = (
            found[f"{name}; {until}"] for until in ("until decided, patience = 3", "until the end")
        )
        assert early["all intervals contain the truth"] > 0.95 - 4 * math.sqrt(0.05 / 600)
        assert early["median speed-up"] == pytest.approx(full["median speed-up"], rel=0.01)


def test_replayed_races_read_the_committed_runs_of_methods_digits() -> None:
    """The arms and their mean log ratios are those of the table that the report wrote of the same runs."""
    ratios, flow = recorded_ratios()
    with open(ROOT / "benchmarks/results/methods-digits/methods-digits.csv", encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file) if row["axis"] == "steps"}
    own = rows.pop("flow")
    assert ratios.keys() == {arm for arm, row in rows.items() if row["not_reached"] == "0"}
    assert flow == pytest.approx(float(own["time"]))
    for arm, logs in ratios.items():
        assert math.exp(np.mean(logs)) == pytest.approx(float(rows[arm]["speedup"]))
