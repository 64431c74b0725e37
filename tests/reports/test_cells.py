"""Headlines of studies with a second axis: arms are compared with the baseline of the same cell only."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from harness.errors import UserError
from reports.analysis.report import RaceReport, read_report
from reports.cli.audit import audit
from reports.cli.report import report as command
from reports.pages.tables import headline_tables
from reports.race.across import sentence_across
from reports.race.race import read_race
from reports.race.workloads import pool_speedups
from reports.stats.speedup import Time, speedup
from tests.reports.rates_study import OF_SEED, STEPS, TARGET, write_study
from tests.reports.synthetic import write_run


def by_hand(method: str) -> tuple[float, float, float]:
    """Return the pooled speed-up with its t interval over seeds, each averaged over the two cells."""
    rates = (0.001, 0.01)
    logs = [
        np.mean([math.log(STEPS["flow"][rate] * own / STEPS[method][rate]) for rate in rates])
        for own in OF_SEED
    ]
    low, high = stats.t.interval(0.95, 2, np.mean(logs), stats.sem(logs))
    return math.exp(np.mean(logs)), math.exp(low), math.exp(high)


def test_headline_is_pooled_over_cells_and_has_the_sign_that_the_best_cell_hides(tmp_path: Path) -> None:
    report = read_report([write_study(tmp_path)])
    assert report.across == "pooled"
    value, low, high = by_hand("repa")
    assert value < high < 1
    pooled = report.pooled["steps", "repa"]
    assert [pooled.gain.estimate, pooled.gain.low, pooled.gain.high] == pytest.approx([value, low, high])
    assert (pooled.gain.n, pooled.by_seed, pooled.gain.direction) == (3, True, "slower")
    assert report.headline == (
        "Over 2 cells (train.learning_rate = 0.001; train.learning_rate = 0.01), flow reached fd:local ≤ 30 "
        f"first on average. Speed-up over it in steps: repa {value:.2f}x [{low:.2f}, {high:.2f}], slower; "
        f"sra {by_hand('sra')[0]:.2f}x [{by_hand('sra')[1]:.2f}, {by_hand('sra')[2]:.2f}], slower "
        "(95 %, n = 3 seeds, each averaged over the cells). "
        "The cells disagree: repa is faster in 1 of 2 cells and slower in 1."
    )


def test_every_speed_up_is_over_the_baseline_of_its_own_cell(tmp_path: Path) -> None:
    race = read_race([write_study(tmp_path)])
    mean = float(stats.gmean(OF_SEED))
    found = {label: gain.estimate for (axis, label), gain in race.speedups.items() if axis == "steps"}
    assert found == pytest.approx(
        {
            f"{method} (train.learning_rate = {rate:g})": STEPS["flow"][rate] * mean / step
            for method in ("repa", "sra")
            for rate, step in STEPS[method].items()
        }
    )
    assert race.leaders == {} and race.reference == "flow in the same cell"
    assert race.baselines == {f"flow (train.learning_rate = {rate:g})" for rate in (0.001, 0.01)}


def test_headline_is_per_cell_if_the_study_or_the_command_says_so(tmp_path: Path) -> None:
    write_study(tmp_path, extra='[report]\nacross = "cells"\n')
    report = read_report([tmp_path])
    mean = float(stats.gmean(OF_SEED))
    assert report.across == "cells"
    assert report.headline.startswith("Speed-up to fd:local ≤ 30 in steps over flow in the same cell (95 %).")
    for rate in (0.001, 0.01):
        assert f"repa {STEPS['flow'][rate] * mean / STEPS['repa'][rate]:.2f}x" in report.headline
    (table,) = headline_tables(report)
    assert next(iter(table.rows)) == "repa, train.learning_rate = 0.001" and len(table.rows) == 4
    assert read_report([tmp_path], across="pooled").across == "pooled"


def test_cell_that_sets_no_distinguishing_field_has_a_name_in_the_headline(tmp_path: Path) -> None:
    """Fields at their defaults may be missing in specs, for example the equal weights of two parts."""
    report = read_report([write_study(tmp_path)])
    first, second = report.workloads
    cells = replace(first, label=""), second
    text = sentence_across(report.race, cells, report.pooled, "steps", "cells")
    assert " default settings: repa " in text and f"; {second.label}: " in text


def test_headline_is_per_cell_by_default_when_cells_compare_different_arms(tmp_path: Path) -> None:
    steps = STEPS | {"sra": {0.001: 1500.0}}
    report = read_report([write_study(tmp_path, steps | {"irepa": {0.001: 800.0, 0.01: 800.0}})])
    assert report.across == "cells" and "sra" in report.headline


def test_pooled_interval_over_seeds_covers_when_cells_share_their_noise() -> None:
    """The same seed has the same noise in all cells: errors of cells correlate, so that intervals of
    independent cells are too narrow."""
    rng, cells, seeds, repeats = np.random.default_rng(3), 4, 3, 1000
    hits = independent = 0
    for _ in range(repeats):
        logs = 0.3 + rng.normal(0, 0.1, seeds) + rng.normal(0, 0.03, (cells, seeds))
        low, high = stats.t.interval(0.95, seeds - 1, logs.mean(), stats.sem(logs.mean(axis=0)))
        hits += low <= 0.3 <= high
        base = {seed: Time(1000.0) for seed in range(seeds)}
        gains = {
            str(cell): speedup(base, {s: Time(1000 * math.exp(-d)) for s, d in enumerate(row)})
            for cell, row in enumerate(logs)
        }
        gain = pool_speedups(gains).gain
        independent += gain.low <= math.exp(0.3) <= gain.high
    assert 0.93 <= hits / repeats <= 0.97 and independent / repeats < 0.85


def test_target_relative_to_the_baseline_is_resolved_in_each_cell(tmp_path: Path) -> None:
    """The median seed of the baseline is the first, so its value at step 500 is TARGET * sqrt(T / 500)."""
    write_study(tmp_path)
    race = read_race([tmp_path], target="baseline@500")
    assert race.target is None and race.target_given
    for rate in (0.001, 0.01):
        expected = TARGET * (STEPS["flow"][rate] / 500) ** 0.5
        assert race.target_of(f"repa (train.learning_rate = {rate:g})") == pytest.approx(expected)
    report = RaceReport(race)
    assert report.how_found == "the value of flow at step 500, median over seeds"
    assert report.pooled["steps", "repa"].gain.estimate == pytest.approx(by_hand("repa")[0])


def test_target_may_be_the_value_of_another_arm(tmp_path: Path) -> None:
    race = read_race([write_study(tmp_path)], target="repa@500")
    for rate in (0.001, 0.01):
        expected = TARGET * (STEPS["repa"][rate] / 500) ** 0.5
        assert race.target_of(f"flow (train.learning_rate = {rate:g})") == pytest.approx(expected)
    assert RaceReport(race).how_found == "the value of repa at step 500, median over seeds"
    with pytest.raises(UserError, match=r"unknown arm of the target 'rep' \(known: flow"):
        read_race([tmp_path], target="rep@500")


def test_undeclared_baseline_among_several_arms_is_refused_with_their_names(tmp_path: Path) -> None:
    for method in ("repa", "sra"):
        write_run(tmp_path / method, method, 0)
    message = r"no baseline is declared among several arms \('repa'; 'sra'\); name one: --baseline NAME"
    with pytest.raises(UserError, match=message):
        read_race([tmp_path])
    assert read_race([tmp_path], baseline="sra").baseline == "sra"
    words = ["selftest", str(tmp_path), "--metric", "fd:local"]
    with pytest.raises(UserError, match=r"no baseline is declared.*name one: --method NAME"):
        CliRunner().invoke(audit, words, catch_exceptions=False)


def test_flow_is_the_natural_baseline_in_every_cell(tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "study.toml").unlink()
    race = read_race([tmp_path], target=TARGET)
    assert race.baseline_objective == "flow" and len(race.cells) == 2


def test_arms_of_one_objective_need_a_declared_baseline(tmp_path: Path) -> None:
    for rate in (0.001, 0.01):
        write_run(tmp_path / f"{rate}", "flow", 0, set_={"train.learning_rate": rate})
    with pytest.raises(UserError, match="no baseline is declared among several arms"):
        read_race([tmp_path])
    race = read_race([tmp_path], baseline="flow (train.learning_rate = 0.01)")
    assert list(race.speedups) and len(race.cells) == 1


@pytest.mark.usefixtures("undrawn")
def test_page_and_json_have_the_pooled_table_first_and_the_cells_below(tmp_path: Path) -> None:
    write_study(tmp_path / "runs")
    page = tmp_path / "report.html"
    words = [str(tmp_path / "runs"), "-o", str(page), "--json"]
    found = json.loads(CliRunner().invoke(command, words, catch_exceptions=False).output)
    assert found["across"] == "pooled" and all(row["by_seed"] for row in found["pooled"])
    html = page.read_text()
    first, second = (
        html.index("Speed-up over flow in the same cell, pooled over 2 cells"),
        html.index("repa, train.learning_rate = 0.001"),
    )
    assert first < second
    baselines = {row["method"]: row["baseline"] for row in found["rows"]}
    assert baselines["repa (train.learning_rate = 0.01)"] == "flow (train.learning_rate = 0.01)"
