"""Pages in docs/: their code runs, and their commands, tables and paths agree with the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from harness.assembly.resolve import load_spec
from harness.cli.main import cli
from harness.config.registry import METHODS, load
from harness.records.mlflow_mirror import points
from harness.records.record import Record
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study
from tests.conftest import ROOT
from tests.support.commands import flowrace
from tests.support.mlflow_runs import evaluation, train
from tests.support.runs import tiny, trained

PAGE = ROOT / "docs" / "guides" / "adding-a-method.md"
PLUGIN = ROOT / "tests" / "methods" / "inner_plugin"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROOMS = ("harness", "methods", "metrics", "reports", "sweeps", "tests", "benchmarks", "scripts")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language on the page about methods."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_method_page_shows_the_plugin_of_the_conformance_tests() -> None:
    assert blocks("python") == [(PLUGIN / "flowrace_inner.py").read_text()]
    assert blocks("toml") == [(PLUGIN / "pyproject.toml").read_text()]


@pytest.fixture
def page_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the module and the entry point of the page on the import path."""
    about = tmp_path / "page-0.1.dist-info"
    about.mkdir()
    entry = re.search(r'^inner = "(.*)"$', blocks("toml")[0], re.MULTILINE)[1]
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: page\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(f"[flowrace.methods]\ninner = {entry}\n")
    (tmp_path / "flowrace_inner.py").write_text(blocks("python")[0])
    monkeypatch.delitem(sys.modules, "flowrace_inner", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("quick_networks", "page_plugin")
def test_method_on_the_page_trains_and_guides_samples(tmp_path: Path) -> None:
    """In a stack, as the page shows it; its samples equal those of the built-in method that it rewrites."""
    drawn = {}
    for name in ("inner", "internal_guidance"):
        settings = (f"method.name=repa+{name}", "method.repa.encoder.name=random:small", "train.steps=3")
        record: Record = trained(tiny(*settings), tmp_path / "runs")
        assert record.status == "done" and all(name in event["losses"] for event in record.of("train"))
        for scale in (1, 60):
            file = tmp_path / f"{name}-{scale}.npz"
            words = ["-n", "6", "-o", str(file), "--set", f"eval.method_guidance={scale}"]
            assert flowrace("sample", str(record.path), *words).exit_code == 0
            drawn[name, scale] = np.load(file)["arr_0"]
    for scale in (1, 60):
        np.testing.assert_array_equal(drawn["inner", scale], drawn["internal_guidance", scale])
    assert (drawn["inner", 1] != drawn["inner", 60]).any()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_on_a_page_exist_with_their_options(page: Path) -> None:
    text = page.read_text()
    fenced = "\n".join(re.findall(r"^```(?:sh)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    lines = re.findall(r"^flowrace (.*)$", fenced, re.MULTILINE)
    for line in lines + re.findall(r"^    flowrace (.*)$", text, re.MULTILINE):
        words = line.partition(" #")[0].split()
        command = cli.get_command(click.Context(cli), words[0])
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words[1]) or command
        assert command is not None, line
        known = {option for param in command.params for option in param.opts}
        assert {word for word in words if re.match(r"--?[a-z]", word)} - known == set(), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_paths_on_a_page_exist(page: Path) -> None:
    places = rf"`((?:{'|'.join(ROOMS)})/[\w/.-]+\.(?:py|toml|json|md))`"
    named = [name for name in re.findall(places, page.read_text()) if "NAME" not in name]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_method_page_has_at_most_120_lines() -> None:
    assert len(PAGE.read_text().splitlines()) <= 120


def test_study_in_the_readme_can_be_planned(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    study = tmp_path / "study.toml"
    study.write_text(text.partition("```toml\n")[2].partition("```")[0])
    cells = make_plan(load_study(str(study))).runs
    assert len(cells) == len({cell.id for cell in cells}) == 6


def test_study_on_the_page_about_studies_can_be_planned(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "guides" / "studies.md").read_text()
    study = tmp_path / "study.toml"
    study.write_text(text.partition("```toml\n")[2].partition("```")[0])
    runs = make_plan(load_study(str(study))).runs
    layers = {run.spec.method.name: run.spec.method.model_dump().get("layer") for run in runs}
    assert len(runs) == 9 and layers == {"flow": None, "repa": 2, "self_flow": None}


def test_stacks_on_the_page_about_studies_can_be_planned(tmp_path: Path) -> None:
    section = (ROOT / "docs" / "guides" / "studies.md").read_text().partition("## Stacks")[2]
    listed, arms = re.findall(r"^```toml\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[:2]
    file = tmp_path / "one.toml"
    file.write_text('base = "digits"\n' + listed)
    # Any: the settings of a stack, whose class is made at run time.
    method: Any = load_spec(str(file)).method
    assert (method.name, method.repa.layer, method.tread.rate) == ("repa+tread", 2, 0.25)
    file.write_text('name = "stacks"\nbase = "digits"\n' + arms)
    found: dict[str, Any] = {
        run.spec.method.name: run.spec.method for run in make_plan(load_study(str(file))).runs
    }
    assert found["repa"].layer == found["repa+tread"].repa.layer == 2
    assert (found["tread"].rate, found["repa+tread"].tread.rate) == (0.5, 0.25)


def test_pairs_on_the_page_about_studies_are_those_that_methods_declare() -> None:
    section = (ROOT / "docs" / "guides" / "studies.md").read_text().partition("## Stacks")[2]
    stated = re.search(r"^`repa` stacks with (.*), and (.*) with `(\w+)`\.", section, re.MULTILINE)
    assert stated is not None
    pairs = {frozenset(("repa", name)) for name in re.findall(r"`(\w+)`", stated[1])}
    pairs |= {frozenset((name, stated[3])) for name in re.findall(r"`(\w+)`", stated[2])}
    classes = {name: load("method", name) for name in METHODS}
    assert pairs == {frozenset((name, other)) for name, cls in classes.items() for other in cls.stacks_with}


def test_tracking_page_has_every_mirrored_metric() -> None:
    page = (ROOT / "docs" / "guides" / "tracking.md").read_text()
    shown = re.findall(r"`((?:train|cost|eval)/[^`]*)`", page)
    patterns = [re.sub(r"<\w+>", "[^/]+", name) for name in shown]
    event = evaluation(4)
    event["metrics"]["fd:local"] |= {"low": 1.0, "high": 3.0}
    sent = points(train(3)).keys() | points(event).keys()
    assert len(sent) == 10
    for name in sent:
        assert any(re.fullmatch(pattern, name) for pattern in patterns), name
