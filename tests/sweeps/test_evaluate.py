"""`flowrace eval STUDY`: kept weights of all runs are measured in parallel, once, and nothing is trained."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.cli.main import cli
from harness.errors import UserError
from harness.records.record import Record, find_records
from tests.support.finished_study import finished_study
from tests.support.runs import events

pytestmark = pytest.mark.usefixtures("quick_networks")

ASKED = ("--metrics", "fd:local,recall:local", "--guidance", "1,2", "--slots", "2")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_study(tmp_path_factory.mktemp("runs"))


def lines(study: Path) -> list[list[str]]:
    return [
        sorted((record.path / "evaluations.jsonl").read_text().splitlines()) for record in find_records(study)
    ]


def asked(study: Path, *words: str) -> Any:
    result = CliRunner().invoke(cli, ["eval", str(study), *ASKED, *words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.slow
def test_study_is_measured_once_and_trains_nothing(study: Path) -> None:
    before = [events(record) for record in find_records(study)]
    found = asked(study)
    assert [len(run["evaluations"]) for run in found["runs"]] == [6, 6]
    assert [run["label"] for run in found["runs"]] == ["seed 0", "seed 1"]
    once = lines(study)
    # recall under the training's guidance, and both metrics under the other, at three steps.
    assert [len(own) for own in once] == [6, 6]
    status = CliRunner().invoke(cli, ["status", str(study), "--json"], catch_exceptions=False).stdout
    assert [run["later_evaluations"] for run in json.loads(status)["runs"]] == [6, 6]
    assert asked(study) == found and lines(study) == once
    assert [events(record) for record in find_records(study)] == before
    for record in find_records(study):
        assert len(record.environment) == 1 and [c.guidance for c in record.views] == [1.0, 2.0]


def test_seeds_and_steps_that_are_added_reuse_all_others(study: Path) -> None:
    text = (study.parent / "two.toml").read_text().replace("seed = [0, 1]", "seed = [0, 1, 3, 4]")
    (study.parent / "four.toml").write_text(text.replace('"train.steps" = 12', '"train.steps" = 16'))
    words = ["sweep", str(study.parent / "four.toml"), "--out", str(study), "--dry-run", "--json"]
    plan = json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).stdout)
    rows = [(run["status"], run["step"]) for run in plan["runs"]]
    assert rows == [("to extend", 12), ("to extend", 12), ("missing", 0), ("missing", 0)]
    # Of four runs of 16 steps, two have 12 already.
    assert plan["flops"]["left"] == pytest.approx(plan["flops"]["total"] * (2 * 4 + 2 * 16) / (4 * 16))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--steps", "5"), "has no checkpoint at step 5"),
        (("--steps", "soon"), "expected all, last, around-target, or steps such as 400,800"),
        (("--guidance", "strong"), "--guidance strong: expected numbers"),
        (("--metrics", "fdd:local"), "unknown metric in eval.metrics 'fdd:local'.*Did you mean 'fd:local'"),
        (("--steps", "around-target"), "belongs to no study with a target"),
        (("--set", "train.steps=5"), r"only eval\.\*, runtime\.\* and data\.root can be changed"),
        (("--against", "digits"), "--against applies to samples, but .* is a run or a study"),
        (("--step", "4", "--steps", "8"), "mutually exclusive"),
    ],
)
def test_question_that_cannot_be_answered_is_rejected(
    study: Path, words: tuple[str, ...], message: str
) -> None:
    run = next(record.path for record in find_records(study))
    before = sorted(run.rglob("*"))
    result = CliRunner().invoke(cli, ["eval", str(run), *words])
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert sorted(run.rglob("*")) == before


@pytest.mark.slow
def test_evaluation_of_a_study_killed_at_random_moments_measures_nothing_twice(
    study: Path, tmp_path: Path
) -> None:
    """The coordinator and its jobs are killed together, as when a machine goes down."""
    whole = tmp_path / "whole"
    shutil.copytree(study, whole)
    asked(whole)
    expected, dice = lines(whole), random.Random(11)
    command = [sys.executable, "-m", "harness.cli.main", "eval"]
    for number in range(4):
        out = tmp_path / str(number)
        shutil.copytree(study, out)
        for file in out.rglob("evaluations.jsonl"):
            file.unlink()
        process = subprocess.Popen(
            [*command, str(out), *ASKED, "--json"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout=dice.uniform(3, 14))
        except subprocess.TimeoutExpired:
            kill_below(process.pid)
        process.wait()
        asked(out)
        assert lines(out) == expected
        assert [Record(record.path).status for record in find_records(out)] == ["done", "done"]


def kill_below(pid: int) -> None:
    """Kill a process and all that it started."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        kill_below(int(child))
    os.kill(pid, signal.SIGKILL)
