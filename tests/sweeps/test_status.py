"""Status, retry and diff of studies, on folders written by sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.records.record import Record
from sweeps.plan.difference import Change, ComparedRun, field_changes
from sweeps.plan.plan import make_plan
from sweeps.plan.status import difference
from sweeps.plan.study import load_study
from sweeps.plan.study_folder import write_plan
from tests.support.commands import flowrace
from tests.support.quick import keep_local_network
from tests.sweeps.conftest import SMALL_RUNS

STUDY = f"""name = "small"
base = "digits"
[axes]
seed = [0, 1]
"method.name" = ["flow", "self_flow"]
[[exclude]]
reason = "too dear"
where = {{ seed = 1, "method.name" = "self_flow" }}
[set]
{SMALL_RUNS}"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(STUDY)
    return file


@pytest.mark.slow
@pytest.mark.usefixtures("quick_networks")
def test_status_before_during_and_after_a_sweep(study: Path, tmp_path: Path) -> None:
    """All runs are missing, then one has failed, and a retry runs only that one."""
    out, plan = tmp_path / "out", make_plan(load_study(str(study)))
    planned_runs = plan.runs
    keep_local_network(planned_runs[1].spec)
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


def test_study_diff_names_the_fields_of_runs_that_differ_in_few(study: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    changed = STUDY.replace('"train.batch_size" = 4', '"train.batch_size" = 8')
    changed = changed.replace("seed = [0, 1]", "seed = [0]")
    changed = changed.replace("seed = 1,", "seed = 0,") + '"runtime.threads" = 1\n'
    other.write_text(changed.replace('base = "digits"', 'base = "digits"\nbaseline = "flow"'))
    found = json.loads(flowrace("study", "diff", study, other, "--json").output)
    assert found["fields"] == [{"field": "train.batch_size", "a": 4, "b": 8, "runs": ["flow seed 0"]}]
    assert found["settings"] == [{"field": "baseline", "a": None, "b": "flow"}]
    shown = flowrace("study", "diff", study, other).output
    assert "train.batch_size: 4 -> 8 in 1 run\n" in shown and "baseline: not set -> flow\n" in shown


def test_study_diff_names_the_settings_of_studies_that_differ(study: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    tables = '[target]\nvalues = [3.0, 4.0]\n[labels]\nflow = "Flow"\n[budget]\nflops = 1e15\n'
    other.write_text(f"{STUDY}{tables}")
    found = json.loads(flowrace("study", "diff", study, other, "--json").output)
    assert found["fields"] == [] and len(found["both"]) == 3
    assert {(one["field"], str(one["b"])) for one in found["settings"]} == {
        ("target.values", "[3.0, 4.0]"),
        ("labels.flow", "Flow"),
        ("budget.flops", "1000000000000000.0"),
    }


def test_study_diff_of_a_folder_equals_that_of_its_file(study: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "out", make_plan(load_study(str(study)))
    write_plan(load_study(str(study)), plan, out)
    # One run has started, with its spec on disk; the others are planned again.
    (out / plan.runs[0].id).mkdir()
    (out / plan.runs[0].id / "spec.toml").write_text(plan.runs[0].spec.to_toml())
    other = tmp_path / "other.toml"
    other.write_text(STUDY.replace('"train.batch_size" = 4', '"train.batch_size" = 8'))
    by_file, by_folder = (
        json.loads(flowrace("study", "diff", one, other, "--json").output) for one in (study, out)
    )
    assert by_file == by_folder and by_file["fields"][0]["field"] == "train.batch_size"
    assert len(by_file["fields"][0]["runs"]) == 3
    assert json.loads(flowrace("study", "diff", out, study, "--json").output)["fields"] == []


def test_study_diff_pairs_the_most_similar_runs() -> None:
    a = [ComparedRun("1", "x", {"p": 1, "q": 1}), ComparedRun("2", "y", {"p": 2, "q": 2})]
    b = [ComparedRun("3", "y", {"p": 2, "q": 3}), ComparedRun("4", "z", dict.fromkeys("abcdef", 0))]
    assert field_changes(a, b) == [Change("q", 2, 3, ("y",))]


def test_study_diff_names_fields_in_which_runs_of_one_id_differ() -> None:
    a, b = (ComparedRun("1", "x", {"eval.guidance": guidance}) for guidance in (1.0, 1.5))
    assert field_changes([a], [b]) == [Change("eval.guidance", 1.0, 1.5, ("x",))]


def test_difference_compares_ids() -> None:
    a, b = [{"id": "1", "label": "x"}, {"id": "2", "label": "y"}], [{"id": "2", "label": "other words"}]
    assert difference(a, b) == {"both": ["y"], "only_a": ["x"], "only_b": []}
