"""Status, retry and diff of studies, on folders written by sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harness.cli.main import cli
from harness.records.record import Record
from sweeps.plan.plan import make_plan
from sweeps.plan.status import difference
from sweeps.plan.study import load_study
from sweeps.plan.study_folder import write_plan

STUDY = """name = "small"
base = "digits"
[axes]
seed = [0, 1]
"method.name" = ["flow", "self_flow"]
[[exclude]]
reason = "too dear"
where = { seed = 1, "method.name" = "self_flow" }
[set]
"backbone.size" = "pico"
"train.steps" = 2
"train.batch_size" = 4
"train.warmup_steps" = 0
"eval.samples" = 4
"eval.sampler_steps" = 1
"""


def flowrace(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(STUDY)
    return file


def test_status_before_during_and_after_a_sweep(study: Path, tmp_path: Path) -> None:
    """All runs are missing, then one has failed, and a retry runs only that one."""
    out, plan = tmp_path / "out", make_plan(load_study(str(study)))
    planned_runs = plan.runs
    write_plan(load_study(str(study)), plan, out)
    described = json.loads(flowrace("status", out, "--json").output)
    assert described["counts"] == {"missing": 3, "excluded": 1}
    assert described["runs"][-1] == {
        "id": None, "label": "self_flow seed 1", "status": "excluded", "step": 0, "reason": "too dear",
    }  # fmt: skip
    assert flowrace("retry", out).output == f"no failed or stopped run in {out}\n"
    failed = out / planned_runs[1].id
    failed.mkdir()
    (failed / "spec.toml").write_text(planned_runs[1].spec.to_toml())
    (failed / "failed").write_text(json.dumps({"reason": "loss is nan at step 1"}))
    assert Record(failed).status == "failed"
    shown = flowrace("status", out).output
    assert (
        "self_flow seed 0 failed: loss is nan at step 1" in shown
        and "1 failed, 2 missing, 1 excluded" in shown
    )
    result = flowrace("retry", out, "--slots", "1", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert json.loads(flowrace("status", out, "--json").output)["counts"] == {
        "done": 1, "missing": 2, "excluded": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no study: no plan.json in it"),
        ("[1]", "is not a plan"),
        ('{"runs": [{}]}', "is not a plan"),
    ],
)
def test_folder_without_a_study_is_rejected(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    result = flowrace("status", tmp_path)
    assert result.exit_code != 0 and message in str(result.exception)


def test_folder_of_a_search_names_the_command(tmp_path: Path) -> None:
    (tmp_path / "tune.toml").touch()
    result = flowrace("status", tmp_path)
    assert f"flowrace tune {tmp_path / 'tune.toml'} --out {tmp_path}" in str(result.exception)


def test_study_diff_lists_added_runs(study: Path, tmp_path: Path) -> None:
    grown = tmp_path / "grown.toml"
    grown.write_text(STUDY.replace("seed = [0, 1]", "seed = [0, 1, 2]"))
    found = json.loads(flowrace("study", "diff", study, grown, "--json").output)
    assert found["both"] == ["flow seed 0", "self_flow seed 0", "flow seed 1"]
    assert (found["only_a"], found["only_b"]) == ([], ["flow seed 2", "self_flow seed 2"])
    assert "only in" in flowrace("study", "diff", study, grown).output


def test_difference_compares_ids() -> None:
    a, b = [{"id": "1", "label": "x"}, {"id": "2", "label": "y"}], [{"id": "2", "label": "other words"}]
    assert difference(a, b) == {"both": ["y"], "only_a": ["x"], "only_b": []}
