"""MLPerf's aggregate of times to target, which is shown and decides nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
from tests.reports.audits import CHANGES, claim_file, rows, run_records, write_csv
from tests.reports.synthetic import write_race, write_run


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


def test_run_that_failed_before_its_first_evaluation_did_not_converge() -> None:
    times = [Time(20.0), Time(30.0), Time(40.0)]
    found = aggregate(times, lost=1)
    assert (found.value, found.n) == (35.0, 4)
    assert aggregate(times, lost=2).why == "2 of 5 runs did not reach the target; at most 1 may"
    assert aggregate([*times, Time(9.0, "right")], lost=1).value is None


def test_it_is_invalid_while_runs_are_missing() -> None:
    found = aggregate([Time(20.0), Time(30.0), Time(40.0)], missing=2)
    assert found.value is None and found.why == "2 of 5 runs are missing"


def fail_before_evaluation(runs: Path, method: str, seed: int) -> None:
    record = write_run(runs / f"{method}-lost-{seed}", method, seed, grid=[100], status="failed")
    lines = [line for line in record.events if line["kind"] != "eval"]
    (record.path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.usefixtures("undrawn")
def test_report_and_audit_count_runs_without_a_value(tmp_path: Path) -> None:
    """One failed run is the slowest of its arm, two invalidate it, and a missing one does at once."""
    runs = run_records(tmp_path / "runs", {"flow": 1, "repa": 2.0}, seeds=4)
    file = claim_file(tmp_path, **CHANGES)

    def printed() -> tuple[dict[str, Any], dict[str, Any]]:
        report = read_report([runs], target=12.0)
        rows = {row["method"]: row for row in mlperf_rows(report.race) if row["axis"] == "steps"}
        return rows["repa"], json.loads(CliRunner().invoke(command, [str(file), str(runs), "--json"]).stdout)[
            "mlperf"
        ]

    fail_before_evaluation(runs, "repa", 4)
    row, audited = printed()
    steps = sorted(
        run.crossing.step for run in read_report([runs], target=12.0).race.of("repa") if run.crosses
    )
    assert row["n"] == audited["n"]["repa"] == 5 and audited["n"]["flow"] == 4
    assert row["time"] == pytest.approx(np.mean(steps[1:])) == audited["times"]["repa"]
    fail_before_evaluation(runs, "repa", 5)
    row, audited = printed()
    assert (
        row["invalid"] == audited["invalid"]["repa"] == "2 of 6 runs did not reach the target; at most 1 may"
    )
    write_run(runs / "repa-6", "repa", 6, status="stopped")
    row, audited = printed()
    assert row["invalid"] == audited["invalid"]["repa"] == "1 of 7 runs is missing"


@pytest.mark.usefixtures("undrawn")
def test_planned_runs_that_do_not_exist_are_missing(tmp_path: Path) -> None:
    runs = run_records(tmp_path / "runs", {"flow": 1, "repa": 2.0}, seeds=4)
    cells = [
        {"id": f"{method}-{seed}", "cell": {"method.name": method, "seed": seed}}
        for method in ("flow", "repa")
        for seed in range(4 + (method == "repa"))
    ]
    (runs / "plan.json").write_text(json.dumps({"runs": cells}))
    rows = {row["method"]: row for row in mlperf_rows(read_report([runs], target=12.0).race)}
    assert rows["repa"]["invalid"] == "1 of 5 runs is missing" and rows["flow"]["invalid"] is None
    [audited] = judge_claims([claim_file(tmp_path, **CHANGES)], [str(runs)])
    found = audited.mlperf()
    assert found["repa"].why == "1 of 5 runs is missing" and found["flow"].value is not None


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
