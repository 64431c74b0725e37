"""The ablation matrix, checked against scipy's paired test, Holm's method by hand, and a plan with gaps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from reports.analysis.ablation import Ablation, p_value
from reports.analysis.report import RaceReport
from reports.pages.ablation import ablation_section, change_ends, percent
from reports.pages.page import write_report
from reports.race.race import read_race
from reports.stats.speedup import Time, speedup
from tests.reports.synthetic import power_law, write_run

HOSTILE = "<script>alert(1)</script> too large"
SETTINGS = {
    "base": ({"name": "self_flow", "mask_ratio": 0.25}, (1.0, 1.0, 1.0)),
    "half": ({"name": "self_flow", "mask_ratio": 0.5}, (1.3, 1.31, 1.32)),
    "none": ({"name": "self_flow", "mask_ratio": 0.0}, (0.8, 1.1, 1.3)),
    "flow": ({"name": "flow"}, (0.5, 0.6, 0.52)),
}
"""Settings and their speed-ups by seed."""


def write_study(folder: Path, *, plan: bool = True) -> Path:
    """Write runs with the metric 1000 (f step) ** -0.5, f the speed-up; settings share the noise of a seed.

    The plan has one setting without a run, and excludes another.
    """
    runs: list[dict[str, Any]] = []
    for name, (method, effects) in SETTINGS.items():
        for seed, effect in enumerate(effects):
            curve = power_law(1000 * (effect * (1 + 0.05 * seed)) ** -0.5, 0.5)
            set_ = {f"method.{field}": value for field, value in method.items()}
            write_run(folder / f"{name}-{seed}", method["name"], seed, metric=curve, set_=set_)
            runs.append({"id": f"{name}-{seed}", "cell": {"seed": seed, "method": method}})
    absent = {"seed": 0, "method": {"name": "self_flow", "mask_ratio": 0.75}}
    left_out = {"seed": 0, "method": {"name": "self_flow", "mask_ratio": 1.0}}
    if plan:
        table = {
            "runs": [*runs, {"id": "absent", "cell": absent}],
            "excluded": [{"cell": left_out, "reason": HOSTILE}],
        }
        (folder / "plan.json").write_text(json.dumps(table))
        study = 'name = "ablation"\nbaseline = "self_flow (mask_ratio = 0.25)"\n[target]\nvalue = 30.0\n'
        (folder / "study.toml").write_text(study)
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study")


def ablation_of(folder: Path) -> Ablation:
    ablation = RaceReport(read_race([folder])).ablation
    assert ablation is not None
    return ablation


def test_ablation_rows_are_settings_in_every_state(study: Path) -> None:
    found = ablation_of(study)
    states = {row: found.entries[row, ""].state for row in found.rows}
    assert states == {
        "self_flow (mask_ratio = 0.25)": "baseline",
        "flow": "measured",
        "self_flow (mask_ratio = 0)": "measured",
        "self_flow (mask_ratio = 0.5)": "measured",
        "self_flow (mask_ratio = 0.75)": "missing",
        "self_flow (mask_ratio = 1.0)": "excluded",
    }
    assert found.entries["self_flow (mask_ratio = 1.0)", ""].why == HOSTILE
    assert found.columns == ("",) and found.steps == {"": 2000}


def test_changes_and_speed_ups_match_scipys_paired_test(study: Path) -> None:
    """At the last step the metric is f ** -0.5 times the baseline's: the log of the change is -log(f) / 2,
    that of the speed-up log f."""
    found = ablation_of(study)
    for name, row in (("half", "self_flow (mask_ratio = 0.5)"), ("none", "self_flow (mask_ratio = 0)")):
        entry, logs = found.entries[row, ""], np.log(SETTINGS[name][1])
        assert entry.gain.estimate == pytest.approx(math.exp(logs.mean()), rel=1e-6)
        assert 1 / entry.change.estimate == pytest.approx(math.exp(-logs.mean() / 2), rel=1e-9)
        wanted = stats.ttest_1samp(logs, 0)
        assert p_value(entry.gain) == pytest.approx(wanted.pvalue, rel=1e-5)
        assert p_value(entry.change) == pytest.approx(wanted.pvalue, rel=1e-5)
        low, high = wanted.confidence_interval(0.95)
        ends = [math.exp(low / 2), math.exp(high / 2)]
        assert [entry.change.low, entry.change.high] == pytest.approx(ends, rel=1e-6)
        assert (entry.gain.low <= 1 <= entry.gain.high) == (name == "none")


def test_holm_adjustment_matches_hand_computation(study: Path) -> None:
    """The p-values are 3e-4 (half), 4e-3 (flow) and 0.7 (none). Times 3, 2 and 1, the first two stay below
    0.05."""
    found = ablation_of(study)
    p = [stats.ttest_1samp(np.log(SETTINGS[name][1]), 0).pvalue for name in ("half", "flow", "none")]
    assert 3 * p[0] < 2 * p[1] < 0.05 < p[2]
    assert found.entries["self_flow (mask_ratio = 0.5)", ""].gain_is == "resolved"
    assert found.entries["flow", ""].gain_is == "resolved"
    assert found.entries["self_flow (mask_ratio = 0)", ""].gain_is == "unresolved"


def test_effect_is_resolved_alone_when_holm_rejects_it(tmp_path: Path) -> None:
    """p = 0.033 is below 0.05, but 2 p is above it. The other effect has p = 0.7."""
    logs = [0.10, 0.18, 0.13, 0.0205]
    pv = stats.ttest_1samp(logs, 0).pvalue
    assert 0.025 < pv < 0.05
    effects = {"a": np.exp(logs), "b": np.exp([0.1, -0.1, 0.05, -0.08]), "base": np.ones(4)}
    for number, (name, by_seed) in enumerate(effects.items()):
        for seed, effect in enumerate(by_seed):
            set_ = {"method.mask_ratio": float(number)}
            curve = power_law(1000 * effect**-0.5, 0.5)
            write_run(tmp_path / f"{name}-{seed}", "self_flow", seed, metric=curve, set_=set_)
    race = read_race([tmp_path], target=30, baseline="self_flow (mask_ratio = 2)")
    found = RaceReport(race).ablation
    assert found.entries["self_flow (mask_ratio = 0)", ""].gain_is == "alone"
    assert '<small class="unresolved">resolved alone</small>' in str(ablation_section(RaceReport(race)))


def test_p_value_is_1_when_deciding_end_is_open() -> None:
    base = {seed: Time(1000.0) for seed in range(3)}
    cand = {0: Time(500.0), 1: Time(510.0), 2: Time(505.0, "right")}
    open_below = speedup(base, cand)
    assert open_below.low == 0 and p_value(open_below) == 1
    assert p_value(speedup(cand, base)) == 1 and p_value(None) == 1
    slower = speedup(base, {0: Time(2000.0), 1: Time(2100.0), 2: Time(2050.0, "right")})
    # The upper end, which decides here, is closed.
    assert p_value(slower) < 0.05
    assert p_value(speedup(base, base)) == 1
    assert p_value(speedup(base, {seed: Time(500.0) for seed in base})) == 0


def test_ablation_has_a_column_for_each_cell_when_a_combination_is_excluded(tmp_path: Path) -> None:
    runs, left_out = [], []
    for size in ("nano", "S"):
        for method in ("flow", "repa"):
            cell = {"seed": 0, "backbone.size": size, "method.name": method}
            if (size, method) == ("S", "repa"):
                left_out.append({"cell": cell, "reason": "does not fit"})
                continue
            write_run(tmp_path / f"{method}-{size}", method, 0, set_={"backbone.size": size})
            runs.append({"id": f"{method}-{size}", "cell": cell})
    (tmp_path / "plan.json").write_text(json.dumps({"runs": runs, "excluded": left_out}))
    race = read_race([tmp_path], target=30)
    found = RaceReport(race).ablation
    assert found.rows == ("flow", "repa")
    # The first planned cell has the baseline.
    assert found.columns == ("backbone.size = nano", "backbone.size = S")
    assert found.entries["repa", "backbone.size = S"].why == "does not fit"
    assert found.entries["repa", "backbone.size = nano"].gain.estimate == pytest.approx(1)


def test_race_of_single_settings_has_no_ablation(tmp_path: Path) -> None:
    for method in ("flow", "repa"):
        write_run(tmp_path / method, method, 0)
    race = read_race([tmp_path], target=30)
    assert RaceReport(race).ablation is None and ablation_section(RaceReport(race)) is None


@pytest.mark.usefixtures("undrawn")
def test_page_marks_unresolved_effects_and_escapes_reasons(study: Path, tmp_path: Path) -> None:
    html = write_report([study], tmp_path / "report.html").html.read_text()
    section = html[html.index('<section id="ablation">') :]
    section = section[: section.index("</section>")]
    assert (
        "excluded: &lt;script&gt;alert(1)&lt;/script&gt; too large" in section and "<script>" not in section
    )
    assert "missing: no run yet" in section
    [row] = [row for row in section.split("<tr>") if "mask_ratio = 0)" in row]
    assert row.count("not resolved") == 2
    [row] = [row for row in section.split("<tr>") if "mask_ratio = 0.5)" in row]
    assert "not resolved" not in row and "1.31×" in row and "−12.6 %" in row


def test_percent_formats_ratios_as_changes() -> None:
    assert [percent(v) for v in (0.958, 1.0, 0.99999, 1.2345)] == ["−4.2 %", "0.0 %", "0.0 %", "+23.4 %"]
    base = {seed: Time(10.0) for seed in range(3)}
    assert change_ends(speedup(base, {seed: Time(20.0) for seed in base})) == "[+100.0, +100.0]"
    assert change_ends(speedup(base, {0: Time(10.0)})) == ""
