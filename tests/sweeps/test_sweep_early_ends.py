"""Sweeps whose runs end once they have reached the target: `until = "reached"`, with stub runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from harness.cli.main import cli
from harness.errors import UserError
from harness.records.early_end import EndRule
from harness.records.record import Record
from harness.records.study_folder import StudyFolder
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.pretraining import first_stage
from sweeps.plan.status import read_status
from sweeps.plan.study import load_study
from sweeps.plan.study_folder import write_plan
from sweeps.race.race_file import read_race
from tests.sweeps.conftest import STUDY, starts
from tests.sweeps.races import claim_text, sequential

PLAIN = STUDY.replace("seed = [0, 1]", "seed = [0]")
ENDING = PLAIN.replace("value = 12.0", 'value = 14.0\nuntil = "reached"\npatience = 1')
"""Stub runs have 13.3 at step 3 of 6."""


def invoke(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def sweep(study: Path) -> Result:
    return invoke("sweep", study, "--no-track", "--no-report", "--slots", 1)


def planned(study: Path, text: str) -> list[PlannedRun]:
    study.write_text(text)
    return make_plan(load_study(str(study))).runs


def last_steps(folder: Path) -> set[int]:
    return {record.last_step for record in StudyFolder(folder).records}


@pytest.fixture
def ended(study: Path, tmp_path: Path) -> Path:
    study.write_text(ENDING)
    assert sweep(study).exit_code == 0
    return tmp_path / "runs" / "tiny"


def test_runs_end_at_the_target_and_are_done(ended: Path, study: Path) -> None:
    assert last_steps(ended) == {3}
    again = sweep(study)
    assert (
        set(starts(ended).values()) == {1} and "early ends of runs saved 50% of their steps" in again.output
    )
    found = read_status(ended)
    assert found["counts"] == {"done": 2}
    assert {run["ended"] for run in found["runs"]} == {
        "ended at step 3 of 6: fd:local <= 14 in 1 evaluations in a row"
    }


@pytest.mark.slow
@pytest.mark.parametrize("how", ["extend", "until"])
def test_ended_runs_are_continued_to_their_last_step(ended: Path, study: Path, how: str) -> None:
    """By `flowrace extend`, and by a sweep of the study without `until`; a later sweep starts nothing."""
    if how == "extend":
        assert invoke("extend", ended, "--steps", 6, "--no-track", "--no-report").exit_code == 0
    else:
        study.write_text(PLAIN)
        assert "to extend" in invoke("sweep", study, "--dry-run").output
        assert sweep(study).exit_code == 0
    assert last_steps(ended) == {6} and read_status(ended)["counts"] == {"done": 2}
    assert all(Record(record.path).early_end is None for record in StudyFolder(ended).records)
    before = starts(ended)
    study.write_text(ENDING)
    assert sweep(study).exit_code == 0 and starts(ended) == before == Counter(dict.fromkeys(before, 2))


def test_plan_without_an_end_has_no_new_field_and_ids_are_equal(study: Path, tmp_path: Path) -> None:
    plans: list[dict[str, Any]] = []
    for name, text in (("plain", PLAIN), ("end", PLAIN + 'until = "end"\n'), ("reached", ENDING)):
        study.write_text(text)
        loaded = load_study(str(study))
        write_plan(loaded, make_plan(loaded), tmp_path / name)
        plans.append(json.loads((tmp_path / name / "plan.json").read_text()))
    plain, end, reached = plans
    assert plain == end and "until" not in (tmp_path / "plain" / "study.toml").read_text()
    rules = [run.pop("ends_early") for run in reached["runs"]]
    assert set(rules) == {"fd:local <= 14 in 1 evaluations in a row"} and reached == plain


def test_lowest_of_several_targets_ends_a_run(study: Path) -> None:
    runs = planned(
        study, PLAIN.replace("value = 12.0", 'values = [8.0, 10.0]\nuntil = "reached"\nmargin = 0.1')
    )
    assert {run.end for run in runs} == {EndRule((("fd:local", 8.0),), 3, 0.1)}


def test_run_without_the_metric_of_the_end_is_rejected(study: Path) -> None:
    metrics = '[["recall:local"], ["fd:local"]]'
    zipped = f'\n[zip.both]\n"method.name" = ["flow", "repa"]\n"eval.metrics" = {metrics}\n'
    text = ENDING.replace('"method.name" = ["flow", "repa"]', "") + zipped
    message = r"unknown metric of until = \"reached\" 'fd:local' \(known: recall:local\)"
    with pytest.raises(UserError, match=message):
        planned(study, text)


def test_dry_run_prints_what_early_ends_save_and_forbid(study: Path) -> None:
    study.write_text(
        ENDING.replace("patience = 1", "patience = 2").replace("[set]", '[set]\n"eval.every" = 2')
    )
    shown = invoke("sweep", study, "--dry-run").output
    assert "runs of flow, repa end early after fd:local <= 14 in 2 evaluations in a row" in shown
    assert "a run ends at step 4 of 6 at the earliest, which saves at most" in shown
    assert "cannot answer: values at the end of a run" in shown
    found = json.loads(invoke("sweep", study, "--dry-run", "--json").stdout)["until"]
    assert found["saves_at_most"] == pytest.approx(found["of"] / 3, rel=1e-6)
    study.write_text(PLAIN)
    assert "until" not in json.loads(invoke("sweep", study, "--dry-run", "--json").stdout)


def test_runs_of_a_first_stage_go_to_their_last_step(study: Path, tmp_path: Path) -> None:
    study.write_text(ENDING)
    second = tmp_path / "second.toml"
    second.write_text(PLAIN.replace('"tiny"', '"second"') + '[pretraining]\nstudy = "tiny.toml"\n')
    first = first_stage(load_study(str(second)))
    assert first is not None and {run.end for run in make_plan(first).runs} == {None}


def test_claims_of_a_race_replace_the_end_of_its_study(study: Path, tmp_path: Path) -> None:
    study.write_text(ENDING)
    file = tmp_path / "claim.toml"
    file.write_text('study = "tiny.toml"\n' + claim_text("repa", more=sequential()))
    found = read_race(file).study
    assert found.target.until is None and {run.end for run in make_plan(found).runs} == {None}
