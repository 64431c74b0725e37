"""MLPerf's aggregate of times to target, which is shown and decides nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from reports.analysis.report import read_report
from reports.analysis.rows import mlperf_rows
from reports.audit.judge_files import judge_claims
from reports.cli.audit import audit as command
from reports.pages.page import write_report
from reports.pages.report_json import to_json
from reports.stats.mlperf import aggregate
from reports.stats.speedup import Time
from tests.reports.audits import claim_file, rows, write_csv
from tests.reports.synthetic import write_race


def test_aggregate_is_the_trimmed_mean() -> None:
    """Compared with scipy's, which cuts the same share at both ends."""
    rng = np.random.default_rng(4)
    for n in (3, 4, 7, 10):
        values = rng.lognormal(5, 0.3, n)
        found = aggregate(Time(float(value)) for value in values)
        assert found.value == pytest.approx(stats.trim_mean(values, 1 / n + 1e-9)) and found.n == n


def test_run_that_did_not_converge_is_the_slowest() -> None:
    """Also if it was stopped early, so that its time is the smallest number."""
    times = [Time(10.0, "right"), Time(20.0), Time(30.0), Time(40.0)]
    assert aggregate(times).value == 35.0
    assert aggregate([*times, Time(50.0, "right")]).value is None
    assert "at most 1 may" in aggregate([*times, Time(50.0, "right")]).why


def test_run_below_the_target_from_the_start_is_the_fastest() -> None:
    times = [Time(10.0), Time(20.0), Time(30.0), Time(40.0, "left")]
    assert aggregate(times).value == 15.0
    assert aggregate([*times, Time(5.0, "left")]).value is None


def test_fewer_than_three_runs_have_none() -> None:
    found = aggregate([Time(1.0), Time(2.0)])
    assert found.value is None and found.why == "2 runs; it needs 3"


def test_audit_shows_it_under_its_own_name(tmp_path: Path) -> None:
    """On the card and in the JSON; the verdict is that of the interval."""
    table = write_csv(tmp_path / "curves.csv", rows({"old": 1, "new": 2.0}, seeds=range(5), noise=0.05))
    file = claim_file(tmp_path)
    [found] = judge_claims([file], [str(table)])
    own = {name: [time.value for time in times] for name, times in found.times().items()}
    expected = {name: float(np.mean(sorted(values)[1:-1])) for name, values in own.items()}
    row = json.loads(CliRunner().invoke(command, [str(file), str(table), "--json"]).stdout)["mlperf"]
    assert row["times"] == pytest.approx(expected) and row["invalid"] == {}
    assert row["ratio"] == pytest.approx(expected["old"] / expected["new"])
    card = CliRunner().invoke(command, [str(file), str(table)]).stdout
    assert "MLPerf's aggregate (fastest and slowest run dropped" in card


@pytest.mark.usefixtures("undrawn")
def test_report_shows_it_next_to_the_times(tmp_path: Path) -> None:
    runs = write_race(tmp_path / "runs", {"flow": 1, "sra": 1.4}, seeds=4, grid=range(200, 2001, 200))
    report = read_report([runs], target=25.0)
    found = {row["method"]: row for row in mlperf_rows(report.race) if row["axis"] == "steps"}
    steps = sorted(run.crossing.step for run in report.race.of("sra"))
    assert found["sra"]["time"] == pytest.approx((steps[1] + steps[2]) / 2) and found["sra"]["n"] == 4
    page = write_report([runs], tmp_path / "r.html", target=25.0)
    assert "MLPerf&#39;s aggregate of steps" in page.html.read_text()
    assert json.loads(to_json(report, [], ""))["mlperf"] == mlperf_rows(report.race)
