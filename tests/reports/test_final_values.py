"""The final value of every metric, checked against scipy's interval of a mean."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from harness.records.record import EVENTS
from reports.analysis.report import RaceReport
from reports.pages.final_values import final_value_section
from reports.pages.page import write_report
from reports.race.final_values import final_values_of, real_sample_values
from reports.race.race import read_race
from tests.reports.synthetic import METRIC, PLAIN, write_run

FLOOR = {
    METRIC: {
        "held_out": {"mean": 4.5, "n": 400, "n_real": 3152},
        "train_halves": {"mean": 3.5, "n": 400, "n_real": 2752},
    },
    "sync": {
        "held_out": {"mean": 1.0, "n": 400, "n_real": 0},
        "spoilt": {"mean": 0.31, "n": 400, "n_real": 0},
    },
}


def sync(seed: int, step: float) -> float:
    return math.sin(3 * seed) * step / 2000


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(4):
        environment = {"evaluation": {"floor": FLOOR}}
        others = {"sync": lambda step, seed=seed: sync(seed, step)}
        write_run(tmp_path / f"flow{seed}", "flow", seed, others=others, environment=environment)
    write_run(tmp_path / "repa", "repa", 0, environment=environment)
    write_run(tmp_path / "failed", "flow", 9, metric=lambda step: 1e9, status="failed")
    write_run(tmp_path / "short", "flow", 8, metric=lambda step: 1e9, grid=(10, 20, 30))
    return tmp_path


def test_final_values_match_scipys_t_interval_over_finished_seeds(runs: Path) -> None:
    found = {(final.arm, final.metric): final for final in final_values_of(read_race([runs]))}
    assert set(found) == {("flow", METRIC), ("flow", "sync"), ("repa", METRIC)}
    final, values = found["flow", "sync"].over_seeds, [sync(seed, 2000) for seed in range(4)]
    assert (found["flow", "sync"].step, final.n) == (2000, 4)
    assert (final.mean, final.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (final.low, final.high) == pytest.approx(expected)
    equal = found["flow", METRIC].over_seeds
    assert (equal.mean, equal.sd, equal.low) == pytest.approx((PLAIN(2000), 0, PLAIN(2000)))
    one = found["repa", METRIC].over_seeds
    assert (one.n, one.mean) == (1, pytest.approx(PLAIN(2000))) and one.sd is one.low is one.high is None


@pytest.mark.usefixtures("undrawn")
def test_real_samples_are_listed_first(runs: Path) -> None:
    assert real_sample_values(read_race([runs]))["sync"] == {"held_out": 1.0, "spoilt": 0.31}
    done = write_report([runs], runs / "report.html")
    with open(done.finals_csv, newline="") as file:
        rows = [(row["metric"], row["method"], row["mean"], row["n"]) for row in csv.DictReader(file)]
    assert rows[:2] == [
        (METRIC, "real samples, held out", "4.5", ""),
        (METRIC, "real samples, half against half", "3.5", ""),
    ]
    assert ("sync", "real samples, spoilt", "0.31", "") in rows
    page = done.html.read_text()
    assert "Final values of every metric" in page and "real samples, spoilt" in page


def test_page_has_no_final_values_section_for_a_single_metric(tmp_path: Path) -> None:
    write_run(tmp_path / "flow")
    assert final_value_section(RaceReport(read_race([tmp_path]))) is None


def test_final_values_leave_out_finished_runs_without_evaluation(runs: Path) -> None:
    bare = write_run(runs / "bare", "flow", 7)
    lines = (bare.path / EVENTS).read_text().splitlines(keepends=True)
    (bare.path / EVENTS).write_text("".join(line for line in lines if '"kind":"eval"' not in line))
    assert {final.over_seeds.n for final in final_values_of(read_race([runs])) if final.arm == "flow"} == {4}


def test_values_by_time_and_part_are_folded_away(tmp_path: Path) -> None:
    others = {
        name: lambda step: 1.0 for name in ("loss:held_out", "loss:held_out@0.5", "loss:held_out/video")
    }
    write_run(tmp_path / "flow", others=others)
    page = str(final_value_section(RaceReport(read_race([tmp_path]))))
    open_part, folded = page.split("<details>")
    assert "loss:held_out<" in open_part and "@0.5" not in open_part
    assert "loss:held_out@0.5<" in folded and "loss:held_out/video<" in folded
