"""Cells and their pooled effect, checked against closed forms, scipy's Welch test and simulated coverage."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from reports.analysis.report import RaceReport
from reports.pages.forest import candidates, compared_axes, workload_section
from reports.pages.report_json import to_json
from reports.race.race import read_race
from reports.race.workloads import Workload, count_sooner, objectives_of, pool_speedups, workloads_of
from reports.stats.speedup import Speedup, Time, speedup
from tests.reports.synthetic import power_law, write_run

EFFECTS = {"nano": (1.5, 1.6, 1.4), "S": (2.0, 2.4, 2.2)}
"""Speed-ups of three seeds in two cells."""


def write_cells(folder: Path, effects: Mapping[str, tuple[float, ...]] = EFFECTS, **run) -> Path:
    """Write runs in which flow reaches a target T at (1000 / T) ** 2, and repa `effect` times sooner."""
    for size, by_seed in effects.items():
        for seed, effect in enumerate(by_seed):
            for method, factor in (("flow", 1.0), ("repa", effect)):
                curve = power_law(1000 * factor**-0.5, 0.5)
                path = folder / f"{method}-{size}-{seed}"
                write_run(path, method, seed, metric=curve, set_={"backbone.size": size}, **run)
    return folder


def by_label(cells: list[Workload]) -> dict[str, Workload]:
    return {cell.label: cell for cell in cells}


def gain_of(logs: np.ndarray) -> Speedup:
    base = {seed: Time(1000.0) for seed in range(len(logs))}
    return speedup(base, {seed: Time(1000.0 * math.exp(-d)) for seed, d in enumerate(logs)})


def test_cells_are_compared_with_their_own_baseline(tmp_path: Path) -> None:
    race = read_race([write_cells(tmp_path)], target=30)
    cells = by_label(workloads_of(race))
    assert objectives_of(race) == ["flow", "repa"]
    assert list(cells) == ["backbone.size = S", "backbone.size = nano"]
    for size, effects in EFFECTS.items():
        cell = cells[f"backbone.size = {size}"]
        found = cell.speedups["steps", "repa"]
        low, high = stats.t.interval(0.95, 2, np.mean(np.log(effects)), stats.sem(np.log(effects)))
        assert [found.estimate, found.low, found.high] == pytest.approx(
            [stats.gmean(effects), math.exp(low), math.exp(high)], rel=1e-6
        )
        assert count_sooner(cell.times("flow", "steps"), cell.times("repa", "steps")) == (3, 3)
    assert candidates(list(cells.values())) == ["repa"]
    assert compared_axes(RaceReport(race)) == ["steps", "images", "flops", "seconds"]


def test_pooled_interval_of_two_cells_matches_scipys_welch_test() -> None:
    """(m1 + m2) / 2 is half the difference of m1 and -m2, so the pooled interval is half of scipy's interval
    for that difference."""
    rng = np.random.default_rng(1)
    for n, m in ((3, 3), (3, 7), (2, 10)):
        a, b = rng.normal(0.4, 0.1, n), rng.normal(0.2, 0.3, m)
        pooled = pool_speedups({"a": gain_of(a), "b": gain_of(b), "none": None})
        low, high = stats.ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
        assert np.log([pooled.gain.low, pooled.gain.high]) == pytest.approx([low / 2, high / 2], rel=1e-9)
        assert math.log(pooled.gain.estimate) == pytest.approx((a.mean() + b.mean()) / 2)
        assert pooled.gain.n == n + m and pooled.cells == ("a", "b") and pooled.left_out == ("none",)


def test_pooled_interval_covers_when_a_bootstrap_of_three_seeds_does_not() -> None:
    """Four cells of three seeds with different effects: a stratified bootstrap would be too narrow."""
    rng, cells, seeds, repeats = np.random.default_rng(2), 4, 3, 1500
    truths, spreads = np.array([0.1, 0.3, 0.5, 0.7]), np.array([0.05, 0.1, 0.05, 0.2])
    hits = boots = 0
    draws = rng.integers(seeds, size=(600, cells, seeds))
    for _ in range(repeats):
        logs = rng.normal(truths[:, None], spreads[:, None], (cells, seeds))
        found = pool_speedups({str(cell): gain_of(row) for cell, row in enumerate(logs)}).gain
        hits += found.low <= math.exp(truths.mean()) <= found.high
        again = np.take_along_axis(logs[None], draws, axis=2).mean(axis=(1, 2))
        low, high = np.quantile(again, [0.025, 0.975])
        boots += low <= truths.mean() <= high
    assert 0.94 <= hits / repeats <= 0.98
    assert boots / repeats < 0.9


def test_pooled_interval_is_open_when_one_cells_is() -> None:
    closed = gain_of(np.log([1.5, 1.6, 1.4]))
    base = {seed: Time(1000.0) for seed in range(3)}
    never = speedup(base, {0: Time(500.0), 1: Time(600.0), 2: Time(900.0, "right")})
    late = speedup({0: Time(500.0), 1: Time(600.0), 2: Time(900.0, "right")}, base)
    assert pool_speedups({"a": closed, "b": never}).gain.low == 0
    assert math.isfinite(pool_speedups({"a": closed, "b": never}).gain.high)
    assert math.isinf(pool_speedups({"a": closed, "b": late}).gain.high)
    # A single unpaired run has no interval.
    assert pool_speedups({"a": closed, "b": speedup(base, {7: Time(1.0)})}) is None
    assert pool_speedups({"a": closed}) is None


def test_count_sooner_counts_pairs_with_a_known_order() -> None:
    base = {
        0: Time(10.0),
        1: Time(10.0),
        2: Time(10.0, "right"),
        3: Time(10.0),
        4: Time(8.0, "right"),
        6: Time(1.0),
    }
    cand = {
        0: Time(9.0),
        1: Time(10.0),
        2: Time(12.0),
        3: Time(10.0, "right"),
        4: Time(9.0, "right"),
        5: Time(1.0),
    }
    # The candidate is first in seeds 0 and 2 of 0, 2 and 3. Seed 1 is a tie; in 4 neither reached the target.
    assert count_sooner(base, cand) == (2, 3)


def test_cell_target_defaults_to_what_all_its_runs_reach(tmp_path: Path) -> None:
    """The slower arm, flow, ends at 1000 / sqrt(2000) = 22.4 in these cells, and at 44.7 in one twice as
    hard."""
    write_cells(tmp_path)
    for seed in range(2):
        for method in ("flow", "repa"):
            curve = power_law(2000, 0.5)
            write_run(
                tmp_path / f"{method}-{seed}", method, seed, metric=curve, set_={"backbone.size": "hard"}
            )
    cells = by_label(workloads_of(read_race([tmp_path])))
    assert cells["backbone.size = S"].target == 22.4
    assert cells["backbone.size = hard"].target == 44.8


def test_cell_gives_a_reason_when_it_has_no_baseline_or_two_protocols(tmp_path: Path) -> None:
    write_cells(tmp_path)
    write_run(tmp_path / "alone", "repa", 0, set_={"backbone.size": "L"})
    for method, protocol in (("flow", "one"), ("repa", "two")):
        write_run(tmp_path / f"{method}-M", method, 0, set_={"backbone.size": "M"}, protocol=protocol)
    race = read_race([tmp_path], target=30)
    why = {cell.label: cell.why for cell in workloads_of(race)}
    assert why == {
        "backbone.size = S": "",
        "backbone.size = nano": "",
        "backbone.size = L": "no finished run of flow",
        "backbone.size = M": "the runs were evaluated under different protocols, "
        "so their values cannot be compared",
    }
    page = str(workload_section(RaceReport(race)))
    assert "backbone.size = L: not compared (no finished run of flow)." in page


def test_fields_tuned_for_each_method_distinguish_objectives_not_cells(tmp_path: Path) -> None:
    for method, rate in (("flow", 1e-3), ("repa", 2e-3)):
        write_run(tmp_path / method, method, 0, set_={"optimizer.learning_rate": rate})
    race = read_race([tmp_path], target=30)
    [cell] = workloads_of(race)
    assert cell.label == "" and len(cell.runs) == 2
    assert objectives_of(race)[1] == "repa (optimizer.learning_rate = 0.002)"
    assert workload_section(RaceReport(race)) is None


def test_failed_run_is_censored_at_the_horizon_and_does_not_shorten_it(tmp_path: Path) -> None:
    """flow takes (1000 / 30) ** 2 = 1111 of 2000 steps. repa is 1.5 times faster, but seed 3 fails at step
    400."""
    write_cells(tmp_path, {"S": (1.5, 1.5, 1.5)})
    write_run(
        tmp_path / "repa-S-2b",
        "repa",
        3,
        set_={"backbone.size": "S"},
        grid=range(100, 401, 100),
        status="failed",
    )
    write_run(tmp_path / "flow-S-3", "flow", 3, set_={"backbone.size": "S"})
    race = read_race([tmp_path], target=30)
    found = race.speedups["steps", "repa"]
    assert race.horizons["steps"] == 2000 and found.n == 4 and found.censored_candidate == 1
    assert found.low == 0 and found.direction == "unresolved"
    logs = [math.log(1.5)] * 3 + [math.log((1000 / 30) ** 2 / 2000)]
    assert found.estimate == pytest.approx(math.exp(np.mean(logs)), rel=1e-6)
    assert [run.seed for run in race.runs if run.counts and not run.done] == [3]


def test_json_contains_every_cell_and_the_pooled_effect(tmp_path: Path) -> None:
    write_cells(tmp_path)
    race = read_race([tmp_path], target=30)
    content = json.loads(to_json(RaceReport(race), [], "report.html"))
    steps = [row for row in content["cells"] if row["axis"] == "steps"]
    assert {(row["cell"], row["objective"]) for row in steps} == {
        ("backbone.size = S", "repa"),
        ("backbone.size = nano", "repa"),
    }
    for row, cell in zip(steps, workloads_of(race), strict=True):
        gain = cell.speedups["steps", "repa"]
        assert (row["speedup"], row["low"], row["high"]) == (gain.estimate, gain.low, gain.high)
    (pooled,) = (row for row in content["pooled"] if row["axis"] == "steps")
    product = math.prod(row["speedup"] for row in steps)
    assert pooled["speedup"] == pytest.approx(math.sqrt(product)) and len(pooled["cells"]) == 2
    areas = {row["objective"]: row["area"] for row in content["profiles"] if row["axis"] == "steps"}
    assert areas["repa"] == 1 and areas["flow"] < 1
