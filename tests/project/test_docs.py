"""The pages in docs/: their code is run, and what they show is what the tests hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.cli.main import COMMANDS
from harness.records.record import Record
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study
from tests.conftest import ROOT
from tests.support.runs import tiny, trained

PAGE = ROOT / "docs" / "guides" / "adding-a-method.md"
PLUGIN = ROOT / "tests" / "methods" / "plugin"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_the_page_shows_the_package_that_the_conformance_suite_installs() -> None:
    assert blocks("python") == [(PLUGIN / "flowrace_echo.py").read_text()]
    assert blocks("toml") == [(PLUGIN / "pyproject.toml").read_text()]


def test_the_method_on_the_page_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the page alone: its module, and the entry point that its pyproject names."""
    about = tmp_path / "page-0.1.dist-info"
    about.mkdir()
    entry = re.search(r'^echo = "(.*)"$', blocks("toml")[0], re.MULTILINE)[1]
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: page\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(f"[flowrace.methods]\necho = {entry}\n")
    (tmp_path / "flowrace_echo.py").write_text(blocks("python")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    record: Record = trained(tiny("method.name=echo", "train.steps=3"), tmp_path / "runs")
    assert record.status == "done" and all("align" in event["losses"] for event in record.of("train"))


def test_its_commands_exist() -> None:
    called = re.findall(r"^flowrace (\w+)", blocks("sh")[0], re.MULTILINE)
    assert called and set(called) <= COMMANDS.keys()


def test_the_page_is_one_screen() -> None:
    assert len(PAGE.read_text().splitlines()) <= 100


def test_the_study_in_the_readme_can_be_planned(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    study = tmp_path / "study.toml"
    study.write_text(text.partition("```toml\n")[2].partition("```")[0])
    cells = make_plan(load_study(str(study))).runs
    assert len(cells) == len({cell.id for cell in cells}) == 6


def test_the_table_of_metrics_holds_every_metric_that_is_sent() -> None:
    from harness.records.mlflow_mirror import points
    from tests.harness.records.test_mlflow_mirror import evaluation, train

    page = (ROOT / "docs" / "guides" / "tracking.md").read_text()
    shown = re.findall(r"`((?:train|cost|eval)/[^`]*)`", page)
    patterns = [re.sub(r"<\w+>", "[^/]+", name) for name in shown]
    event = evaluation(4)
    event["metrics"]["fd:local"] |= {"low": 1.0, "high": 3.0}
    sent = points(train(3)).keys() | points(event).keys()
    assert len(sent) == 10
    for name in sent:
        assert any(re.fullmatch(pattern, name) for pattern in patterns), name
