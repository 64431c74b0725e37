"""Shown names of arms: on pages, in figures, sentences, tables and JSON, escaped; the original is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.errors import UserError
from reports.analysis.report import read_report
from reports.cli.audit import audit
from reports.cli.figures import figures
from reports.cli.options import parse_labels
from reports.cli.report import report as command
from reports.race.race import read_race
from tests.reports.rates_study import write_study
from tests.reports.synthetic import write_race, write_run

NAMES = '[labels]\nrepa = "REPA <1>"\nflow = "Flow matching"\n'


def labelled(folder: Path, **race: float) -> Path:
    write_race(folder, race or {"flow": 1, "repa": 1.5}, noise=0.01)
    (folder / "study.toml").write_text(NAMES)
    return folder


def test_study_labels_are_shown_and_the_original_is_in_the_json(tmp_path: Path) -> None:
    runs, page = labelled(tmp_path / "runs"), tmp_path / "report.html"
    words = [str(runs), "-o", str(page), "--target", "20", "--json"]
    found = json.loads(CliRunner().invoke(command, words, catch_exceptions=False).output)
    assert found["verdict"]["steps"].startswith("REPA <1> reached fd:local ≤ 20 first")
    assert "than Flow matching" in found["verdict"]["steps"]
    assert {(arm["label"], arm["name"]) for arm in found["arms"]} == {
        ("REPA <1>", "repa"),
        ("Flow matching", "flow"),
    }
    assert {(row["method"], row["arm"]) for row in found["rows"] + found["runs"]} == {
        ("REPA <1>", "repa"),
        ("Flow matching", "flow"),
    }
    html = page.read_text()
    body = html[: html.index('<script type="application/json"')]
    assert "REPA &lt;1&gt;" in body and "REPA <1>" not in html


def test_labels_on_the_command_line_win_and_reach_the_figures(tmp_path: Path) -> None:
    runs, out = labelled(tmp_path / "runs"), tmp_path / "figures"
    words = [str(runs), "-o", str(out), "--target", "20", "--format", "svg", "--labels", "repa=Ours & co"]
    assert CliRunner().invoke(figures, words, catch_exceptions=False).exit_code == 0
    for name in ("convergence-steps", "speedup", "targets-steps", "cost"):
        text = (out / f"{name}-narrow.svg").read_text()
        assert ">Ours &amp; co<" in text and ">repa<" not in text and "REPA" not in text, name


def test_label_of_a_method_keeps_the_fields_that_distinguish_its_arms(tmp_path: Path) -> None:
    write_study(tmp_path, extra=NAMES)
    race = read_race([tmp_path])
    assert "REPA <1> (train.learning_rate = 0.001)" in race.candidates
    assert read_report([tmp_path]).objectives == ("Flow matching", "REPA <1>", "sra")
    one = read_race([tmp_path], labels={"sra (train.learning_rate = 0.01)": "SRA, fast"})
    assert "SRA, fast" in one.candidates and "sra (train.learning_rate = 0.001)" in one.candidates


def test_baseline_is_found_by_its_method_its_label_and_its_shown_name(tmp_path: Path) -> None:
    runs = labelled(tmp_path)
    for name in ("repa", "REPA <1>"):
        assert read_race([runs], target=20, baseline=name).baseline == "REPA <1>"


def test_audit_uses_the_labels_of_the_study(tmp_path: Path) -> None:
    runs, claim = labelled(tmp_path / "runs"), tmp_path / "claim.toml"
    claim.write_text(
        '[claim]\nname = "one"\ncandidate = "repa"\nbaseline = "flow"\nmetric = "fd:local"\n'
        "target = 20.0\nfactor = 1.2\n"
    )
    text = " ".join(CliRunner().invoke(audit, [str(claim), str(runs)], catch_exceptions=False).output.split())
    assert '"REPA <1> reaches fd:local <= 20 with at least 1.20x fewer steps than Flow matching"' in text
    found = json.loads(CliRunner().invoke(audit, [str(claim), str(runs), "--json"]).output)
    assert found["labels"] == {"flow": "Flow matching", "repa": "REPA <1>"}


def test_labels_are_refused_if_two_arms_would_share_one_or_no_arm_has_it(tmp_path: Path) -> None:
    runs = write_race(tmp_path, {"flow": 1, "repa": 1.5}, seeds=1)
    with pytest.raises(UserError, match="would both be shown as 'flow'; change one of their labels"):
        read_race([runs], labels={"repa": "flow"})
    with pytest.raises(UserError, match=r"unknown arm 'rep'.*Did you mean 'repa'"):
        read_race([runs], labels={"rep": "REPA"})
    with pytest.raises(UserError, match="--labels repa: expected ARM=NAME"):
        parse_labels(["repa"])
    assert parse_labels(["repa (layer = 2)=REPA"]) == {"repa (layer = 2)": "REPA"}


def test_labels_of_a_study_may_name_arms_without_runs_yet(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "flow")
    (tmp_path / "study.toml").write_text(NAMES)
    assert read_race([tmp_path]).baseline == "Flow matching"
