"""Performance profiles, checked against hand-computed tables, numerical integration and normal theory."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reports.analysis.performance_profile import ENOUGH, Profile, ratios
from reports.analysis.report import RaceReport
from reports.pages.performance_profile import profile_section, steps
from reports.race.race import read_race
from reports.stats.speedup import Time
from tests.reports.synthetic import power_law, write_run

FACTORS = st.lists(st.one_of(st.floats(1, 6), st.just(1.0), st.just(math.inf)), min_size=1, max_size=12)


def profile_of(rows: list[list[float]], strata: tuple[int, ...] | None = None) -> Profile:
    table = np.array(rows, dtype=float)
    return Profile("steps", tuple("abcdef"[: len(rows)]), table, strata or (0,) * table.shape[1], 0)


def test_ratios_match_hand_computation() -> None:
    times = [Time(100.0), Time(150.0), Time(500.0, "right"), Time(100.0), Time(50.0, "left")]
    assert ratios(times).tolist() == [2, 3, math.inf, 2, 1]
    assert ratios([Time(9.0), Time(9.0)]).tolist() == [1, 1]
    assert np.isinf(ratios([Time(9.0, "right"), Time(8.0, "right")])).all()


def test_shares_and_areas_match_hand_computation() -> None:
    """The ratios of `a` are 1, 1, 2 and infinity. Its profile is 1/2 on [1, 2) and 3/4 from 2 to 4, so the
    area is (1/2 + 3/4 * 2) / 3 = 2/3."""
    found = profile_of([[1, 1, 2, math.inf], [1, 3, 1, math.inf]])
    assert found.share(1).tolist() == [0.5, 0.5]
    assert found.share(1.999).tolist() == [0.5, 0.5]
    assert found.share(2).tolist() == [0.75, 0.5]
    assert found.share(4).tolist() == [0.75, 0.75]
    assert found.area() == pytest.approx([2 / 3, (0.5 * 2 + 0.75) / 3])


@settings(max_examples=20, derandomize=True, deadline=None)
@given(FACTORS)
def test_area_is_the_integral_and_drawn_steps_are_the_profile(row: list[float]) -> None:
    found = profile_of([row])
    taus = np.linspace(1, 4, 6001)[1:] - 0.00025
    shares = np.array([found.share(tau)[0] for tau in taus])
    assert found.area()[0] == pytest.approx(shares.mean(), abs=2e-3)
    x, y = steps(np.array(row))
    for tau in (1.0, 1.37, 2.5, 4.0):
        assert y[np.searchsorted(x, tau * (1 + 2e-9), side="right") - 1] == pytest.approx(found.share(tau)[0])
    assert (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()


def test_interval_matches_normal_theory_within_cells() -> None:
    """100 problems in two cells of different difficulty: the spread between cells does not count."""
    rng = np.random.default_rng(3)
    row = np.concatenate([rng.uniform(1, 2, 50), rng.uniform(3, 4, 50)])
    found = profile_of([row.tolist()], (0,) * 50 + (1,) * 50)
    areas = (4 - row) / 3
    error = math.sqrt(areas[:50].var() / 50 + areas[50:].var() / 50) / 2
    low, high = stats.norm.interval(0.95, areas.mean(), error)
    [[got_low, got_high]] = found.interval()
    assert [got_low, got_high] == pytest.approx([low, high], abs=0.1 * (high - low))
    assert (found.interval() == found.interval()).all()
    assert profile_of([row[: ENOUGH - 1].tolist()]).interval() is None


def test_problems_are_the_seeds_of_cells_that_every_objective_has_run(tmp_path: Path) -> None:
    """In two cells of three seeds repa is twice as fast, except for one run that never reaches the target,
    one that is missing and one that failed."""
    for size in ("nano", "S"):
        for seed in range(3):
            cell = {"backbone.size": size}
            write_run(tmp_path / f"flow-{size}-{seed}", "flow", seed, set_=cell)
            scale, extra = 1000 * 2**-0.5, {}
            if (size, seed) == ("S", 1):
                scale = 1e5
            if (size, seed) == ("S", 2):
                continue
            if (size, seed) == ("nano", 2):
                extra = {"grid": range(100, 301, 100), "status": "failed"}
            curve = power_law(scale, 0.5)
            write_run(tmp_path / f"repa-{size}-{seed}", "repa", seed, metric=curve, set_=cell, **extra)
    race = read_race([tmp_path], target=30)
    found = RaceReport(race).profiles.get("steps")
    assert found.objectives == ("flow", "repa") and found.left_out == 1
    columns = sorted(map(tuple, found.ratios.T.round(6).tolist()))
    assert columns == [(1.0, math.inf), (1.0, math.inf), (2.0, 1.0), (2.0, 1.0), (2.0, 1.0)]
    assert len(set(found.strata)) == 2
    text = str(profile_section(RaceReport(race)))
    assert "5 problems: the seeds of 2 cells; 1 more" in " ".join(text.split())


def test_race_of_one_objective_has_no_profile(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / str(seed), "flow", seed)
    race = read_race([tmp_path], target=30)
    assert RaceReport(race).profiles.get("steps") is None and profile_section(RaceReport(race)) is None
