"""The fit and its crossing, against closed forms, scikit-learn and a slow definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from harness.errors import UserError
from reports.stats.crossing import crossing, first_crossing
from reports.stats.curves import Curve, costs_of, curve_of, fit
from tests.reports.synthetic import METRIC, PHASES, power_law, write_run

VALUES = st.lists(st.floats(0.1, 1e4), min_size=2, max_size=30)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values=VALUES, seed=st.integers(0, 99))
def test_fit_equals_scikit_learns_on_the_logarithm(values: list[float], seed: int) -> None:
    weights = np.random.default_rng(seed).uniform(0.1, 9, len(values))
    steps = np.arange(1, len(values) + 1)
    for w in (None, weights):
        reference = (
            IsotonicRegression(increasing=False).fit(steps, np.log(values), sample_weight=w).predict(steps)
        )
        np.testing.assert_allclose(np.log(fit(steps, values, w).fitted), reference, atol=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(scale=st.floats(100, 1e5), slope=st.floats(0.1, 2), at=st.floats(120, 1900), every=st.integers(7, 100))
def test_crossing_of_a_power_law_equals_the_algebra(
    scale: float, slope: float, at: float, every: int
) -> None:
    """A straight line in (log step, log metric): the interpolation is exact whatever the grid."""
    steps = np.arange(every, 2101, every)
    metric = power_law(scale, slope)
    found = crossing(fit(steps, [metric(step) for step in steps]), metric(at))
    assert found.censored is None
    assert found.step == pytest.approx(at, rel=1e-9)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(values=VALUES, share=st.floats(-0.2, 1.2))
def test_crossing_is_between_its_neighbouring_evaluations(values: list[float], share: float) -> None:
    curve = fit(range(10, 10 * len(values) + 10, 10), values)
    target = curve.fitted[0] ** share * curve.fitted[-1] ** (1 - share)
    found = crossing(curve, target)
    below = curve.steps[curve.fitted <= target * (1 + 1e-9)]
    if found.censored == "right":
        assert curve.fitted[-1] > target and found.step == curve.steps[-1]
    elif found.censored == "left":
        assert curve.fitted[0] <= target * (1 + 1e-9) and found.step == curve.steps[0]
    else:
        assert below[0] - 10 <= found.step <= below[0] * (1 + 1e-9)


def test_crossing_is_at_an_exact_hit_and_at_the_start_of_a_plateau() -> None:
    """A target met exactly is reached at that evaluation; on a plateau, even a last one, at its first."""
    curve = fit(
        [10, 20, 30, 40, 50], [100.0, 12.0, 10.0, 14.4, 12.0]
    )  # pooled: 12 = (12 * 10 * 14.4 * 12) ** 1/4
    np.testing.assert_allclose(curve.fitted, [100, 12, 12, 12, 12])
    assert crossing(curve, 12.0).step == pytest.approx(20)
    assert crossing(curve, 100.0).censored == "left"
    assert crossing(curve, 11.999).censored == "right"
    for target in fit([1, 2, 3], [0.3, 0.2, 0.1]).fitted:
        assert crossing(fit([1, 2, 3], [0.3, 0.2, 0.1]), float(target)).censored != "right"


def test_rounding_delays_no_crossing() -> None:
    """Two evaluations that pool to the target meet it, whatever the rounding of their mean."""
    for off in np.random.default_rng(0).uniform(1.01, 3, 200):
        found = crossing(fit([10, 20, 30], [99.0, 0.3 / off, 0.3 * off]), 0.3)
        assert found.censored is None and found.step == pytest.approx(20)


def test_first_and_sustained_crossing_differ_when_a_curve_gets_worse() -> None:
    steps, values = [100, 200, 300, 400, 500, 600], [100.0, 50.0, 10.0, 20.0, 20.0, 20.0]
    curve = fit(steps, values)
    first = first_crossing(curve, 12.0)
    assert first.step == pytest.approx(
        math.exp(np.interp(-math.log(12), [-math.log(50), -math.log(10)], np.log([200, 300])))
    )
    assert first.censored is None
    assert crossing(curve, 12.0).censored == "right"
    falling = fit(steps, sorted(values, reverse=True))
    assert first_crossing(falling, 60.0) == crossing(falling, 60.0)


def test_single_lucky_evaluation_is_no_crossing() -> None:
    """The first raw value below the target is at step 200; the crossing of the fit is after step 400."""
    curve = fit([100, 200, 300, 400, 500], [40.0, 9.0, 38.0, 37.0, 8.0])
    assert crossing(curve, 10.0).step > 400


@pytest.mark.parametrize("bad", [0.0, -3.0, math.nan, math.inf])
def test_metric_without_a_logarithm_is_rejected(bad: float) -> None:
    with pytest.raises(UserError, match=r"at step 20.*must be above 0"):
        fit([10, 20], [5.0, bad])


def test_steps_must_increase() -> None:
    with pytest.raises(UserError, match="increasing steps"):
        fit([10, 10], [5.0, 4.0])


def test_evaluation_at_step_0_is_left_out() -> None:
    curve = fit([0, 10, 20], [99.0, 5.0, 4.0])
    assert isinstance(curve, Curve) and list(curve.steps) == [10, 20]


def test_replicated_evaluations_weigh_by_their_number(tmp_path) -> None:
    """The mean of three has a third of the variance of one."""
    record = write_run(
        tmp_path / "r", grid=(10, 20, 30), metric=lambda step: {10: 9.0, 20: 3.0, 30: 6.0}[step]
    )
    np.testing.assert_allclose(curve_of(record, METRIC).fitted, [9, 18**0.5, 18**0.5])
    record.of("eval")[1]["metrics"][METRIC] |= {"replicates": [2.9, 3.0, 3.1], "low": 2.75, "high": 3.25}
    pooled = (3.0**3 * 6.0) ** (1 / 4)
    np.testing.assert_allclose(curve_of(record, METRIC).fitted, [9, pooled, pooled])


def test_costs_count_only_training(tmp_path) -> None:
    record = write_run(tmp_path / "r", grid=(100, 300), flops=7, environment={"devices": 4})
    costs = costs_of(record)
    second = sum(PHASES.values())
    assert costs.at("steps", 200.5) == pytest.approx(200.5)
    assert costs.at("images", 200) == pytest.approx(64 * 200)
    assert costs.at("flops", 50) == pytest.approx(7 * 50)
    assert costs.at("seconds", 200) == pytest.approx(200 * second)  # neither eval nor warm-up
    assert costs.at("gpu_seconds", 200) == pytest.approx(4 * 200 * second)
    assert costs.budget("seconds") == pytest.approx(300 * second)


def test_cost_follows_the_recorded_seconds(tmp_path) -> None:
    """Steps of a slow second half cost more than those of the first."""
    record = write_run(tmp_path / "r", grid=(100, 200))
    record.of("train")[1]["seconds"]["student"] += 10
    record.of("eval")[1]["seconds"]["student"] += 10
    costs = costs_of(record)
    base = 150 * sum(PHASES.values())
    assert costs.at("seconds", 150) == pytest.approx(base + 5)
    assert costs.at("seconds", 50) == pytest.approx(base / 3)


def test_run_without_the_metric_has_no_curve(tmp_path) -> None:
    record = write_run(tmp_path / "r")
    assert curve_of(record, "fd:inception") is None
    assert curve_of(record, METRIC) is not None
    broken = write_run(tmp_path / "s", metric=lambda step: 0.0)
    with pytest.raises(UserError, match=r"run s, fd:local: the metric is 0 at step 100"):
        curve_of(broken, METRIC)
