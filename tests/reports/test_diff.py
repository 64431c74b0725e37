"""The difference of two reports: hand-made tables, runs from folders and from CSV, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from scipy import stats

from harness.errors import UserError
from reports.analysis.diff import Estimate, ReportSide, compare_reports, final_estimates, moved
from reports.cli.diff_sides import read_side
from reports.cli.report import report
from reports.pages.page import write_report
from tests.reports.synthetic import power_law, write_race, write_run


def diff(*words: object) -> str:
    result = CliRunner().invoke(report, ["diff", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (Estimate(2, 1.5, 2.5), "same"),
        (Estimate(2.2, 1.8, 2.6), "within"),
        (Estimate(2.4, 2.3, 2.6), "between"),
        (Estimate(2.6, 1.9, 3.5), "between"),
        (Estimate(3, 2.6, 3.5), "outside"),
        (Estimate(1, 0.5, 1.4), "outside"),
        (Estimate(3, None, None), "unknown"),
        (Estimate(2.4, 0, math.inf), "within"),
    ],
)
def test_moved_classifies_changes_by_their_intervals(after: Estimate, expected: str) -> None:
    before = Estimate(2, 1.5, 2.5)
    assert moved(before, after) == expected
    assert moved(after, before) == expected


def test_final_estimates_match_scipys_t_interval_of_logs() -> None:
    rows = [{"status": "done", "method": "a", "final": str(v)} for v in (2.0, 3.0, 4.0)]
    rows += [
        {"status": "failed", "method": "a", "final": "9"},
        {"status": "done", "method": "b", "final": ""},
    ]
    logs = [math.log(v) for v in (2, 3, 4)]
    low, high = stats.t.interval(0.95, 2, sum(logs) / 3, stats.sem(logs))
    found = final_estimates(rows)
    assert list(found) == ["a"] and found["a"].n == 3
    assert [found["a"].value, found["a"].low, found["a"].high] == pytest.approx(
        [24 ** (1 / 3), math.exp(low), math.exp(high)]
    )


def test_compare_reports_finds_every_difference_of_hand_made_sides() -> None:
    about = {"metric": "fid", "target": 8.0, "baseline": "flow"}
    key = ("speedup", "steps", "repa")
    gone = ("speedup", "steps", "reg")
    before = ReportSide(
        "a",
        about,
        {key: Estimate(2, 1.5, 2.5), gone: Estimate(1)},
        {
            "r1": {"status": "done", "method": "repa"},
            "r2": {"status": "done", "method": "reg"},
        },
        specs={"repa": {"train.steps": 100, "method.name": "repa"}, "reg": {"train.steps": 100}},
        protocols={"p": {"sampler_steps": 6}},
    )
    after = ReportSide(
        "b",
        about | {"target": 9.0},
        {key: Estimate(3, 2.6, 3.4)},
        {
            "r1": {"status": "failed", "method": "repa"},
            "r3": {"status": "done", "method": "repa"},
        },
        specs={"repa": {"train.steps": 200, "method.name": "repa"}},
        protocols={"q": {"sampler_steps": 50}},
    )
    found = compare_reports(before, after)
    assert found.about == {"target": (8.0, 9.0)}
    assert (found.shared, found.only_before, found.only_after) == (("r1",), ("r2",), ("r3",))
    assert found.status == {"r1": ("done", "failed")}
    assert (found.arms_before, found.arms_after) == (("reg",), ())
    (change,) = found.changes
    assert (change.what, change.arm, change.moved, change.ratio) == ("speedup", "repa", "outside", 1.5)
    assert ("train.steps", (100,), (200,)) in found.specs
    assert found.protocols == (("sampler_steps", (6,), (50,)),)


@pytest.mark.usefixtures("undrawn")
def test_study_equals_itself_and_its_csv(tmp_path: Path) -> None:
    folder = write_race(tmp_path / "runs", {"flow": 1.0, "repa": 2.0})
    done = write_report([folder], tmp_path / "report.html")
    for other in (folder, done.csv):
        found = compare_reports(read_side(folder), read_side(other))
        assert len(found.shared) == 6 and not found.only_before and not found.only_after
        assert {change.what for change in found.changes} == {"speedup", "time", "final"}
        assert {change.moved for change in found.changes} == {"same"}
        assert not (found.about or found.specs or found.protocols or found.arms_before or found.arms_after)


@pytest.mark.usefixtures("undrawn")
def test_arms_are_matched_by_runs_and_fields_when_labels_differ(tmp_path: Path) -> None:
    """The label is `repa` if it is the only arm of its method, else `repa (layer = 2)`."""
    for name in ("a", "b"):
        for seed in range(2):
            write_run(tmp_path / name / f"flow-{seed}", "flow", seed)
            write_run(tmp_path / name / f"repa-{seed}", "repa", seed, set_={"method.layer": 2})
    write_run(tmp_path / "b" / "other", "repa", 0, set_={"method.layer": 4}, metric=power_law(900, 0.5))
    done = write_report([tmp_path / "b"], tmp_path / "report.html", target=30)
    for other in (read_side(tmp_path / "b", target=30), read_side(done.csv)):
        found = compare_reports(read_side(tmp_path / "a", target=30), other)
        assert {change.arm for change in found.changes} == {"flow", "repa"}
        assert found.arms_after == ("repa (layer = 4)",) and not found.arms_before


@pytest.mark.usefixtures("undrawn")
def test_open_ends_survive_the_csv(tmp_path: Path) -> None:
    folder = write_race(tmp_path / "runs", {"flow": 1.0, "repa": 3.0})
    done = write_report([folder], tmp_path / "report.html", target=12)
    row, table = read_side(folder, target=12), read_side(done.csv)
    opened = [n for n in row.numbers.values() if n.high is not None and math.isinf(n.high)]
    assert opened and row.numbers == table.numbers


def test_diff_command_reports_moved_numbers_and_different_protocols(tmp_path: Path) -> None:
    a = write_race(tmp_path / "a", {"flow": 1.0, "repa": 2.0})
    b = write_race(tmp_path / "b", {"flow": 1.0, "repa": 3.0}, protocol="another")
    output = diff(a, b, "--target", 20, "--axis", "steps")
    assert "6 runs in both" in output and "protocol, hash: 9cece13e0f6d -> another" in output
    assert "cannot be compared" in output
    moved_lines = [line for line in map(str.strip, output.splitlines()) if line.startswith("speed-up")]
    assert len(moved_lines) == 1 and moved_lines[0].endswith("outside")
    found = json.loads(diff(a, b, "--target", 20, "--axis", "steps", "--json"))
    gain = next(change for change in found["changes"] if change["what"] == "speedup")
    assert gain["ratio"] == pytest.approx(1.5, rel=0.1) and gain["moved"] == "outside"
    assert len(found["shared"]) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "nothing.csv"], "cannot read nothing.csv; give a folder of runs, or a CSV"),
        (["a", "bad.csv"], "is not a table of a report: it has no column axis"),
        (["a", "empty.csv"], "empty.csv has no rows"),
        (["a", "a", "--axis", "step"], "unknown axis 'step'.*Did you mean 'steps'"),
        (["empty.csv", "a", "--target", "9"], "--target 9 needs the runs"),
    ],
)
def test_diff_command_names_invalid_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    from reports.analysis.rows import ARM_COLUMNS

    monkeypatch.chdir(tmp_path)
    write_run(Path("a/one"), "flow")
    Path("bad.csv").write_text("x,y\n1,2\n")
    Path("empty.csv").write_text(",".join(ARM_COLUMNS) + "\n")
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(report, ["diff", *words], catch_exceptions=False)


def test_report_help_covers_folders_and_diff() -> None:
    run = CliRunner().invoke
    assert "--published" in run(report, ["--help"]).output
    output = run(report, ["diff", "--help"]).output
    assert "report diff" in output and "Example: flowrace report diff" in output
    assert run(report, []).exit_code == 2
