"""`flowrace mirror`: every run of every folder is in the store once, whatever mirrored it before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from harness.cli.main import cli
from harness.cli.run import _mirror as send_one
from harness.errors import UserError
from harness.records.mlflow_mirror import mirror
from harness.records.record import Record
from tests.support.mlflow_runs import child, events, expected, rows, runs_of, written


@pytest.mark.slow
def test_mirror_rebuilds_a_lost_store_and_sends_nothing_twice(tmp_path: Path, uri: str) -> None:
    """There are two runs of a study and one without a study."""
    study = tmp_path / "runs" / "s"
    records = [written(study / name, events(10)) for name in ("abc", "abd")]
    alone = written(tmp_path / "runs" / "lone" / "abe", events(4))
    (study / "study.toml").write_text('name = "s"\n')
    mirror(records, uri=uri, study="s", artifacts=[study / "study.toml"], complete=True)
    mirror([alone], uri=uri, study="lone", complete=True)
    before = rows(uri)
    rebuilt = f"sqlite:///{tmp_path / 'rebuilt' / 'mlflow.db'}"
    command = ["mirror", str(tmp_path / "runs"), "--to", rebuilt, "--json"]
    folders = json.loads(CliRunner().invoke(cli, command, catch_exceptions=False).stdout)["folders"]
    assert rows(rebuilt) == before and sum(folder["points"] for folder in folders) == before.total()
    assert {folder["study"]: folder["runs"] for folder in folders} == {"s": 2, "lone": 1}
    folders = json.loads(CliRunner().invoke(cli, command, catch_exceptions=False).stdout)["folders"]
    assert [folder["points"] for folder in folders] == [0, 0]
    missing = CliRunner().invoke(cli, ["mirror", str(tmp_path / "none")])
    assert isinstance(missing.exception, UserError)


@pytest.mark.parametrize("file", ["events.jsonl", "environment.json", "spec.toml"])
def test_mirror_skips_a_broken_run_and_sends_all_others(tmp_path: Path, uri: str, file: str) -> None:
    """The others are in the folder of the broken run, and in the next one."""
    for name in ("a/abc", "a/abd", "b/abe"):
        written(tmp_path / name, events(4))
    (tmp_path / "a" / "abc" / file).write_text("[]]\n")
    result = CliRunner().invoke(cli, ["mirror", str(tmp_path), "--to", uri])
    assert isinstance(result.exception, UserError) and f"a/abc/{file}" in str(result.exception)
    assert "a: 1 runs, 29 new points\nb: 1 runs, 29 new points" in result.output
    assert rows(uri) == expected(Record(tmp_path / "b" / "abe"), 4) + expected(
        Record(tmp_path / "a" / "abd"), 4
    )
    assert child(uri, "a").info.status == child(uri, "b").info.status == "FINISHED"
    assert {run.info.status for run in runs_of(uri, "a")} == {"FINISHED", "FAILED"}


def test_mirror_adds_nothing_to_runs_that_flowrace_run_sent(tmp_path: Path, uri: str) -> None:
    """One run belongs to a study, the other does not."""
    named = written(tmp_path / "folder" / "abc", events(4))
    alone = written(tmp_path / "lone" / "abd", events(4))
    (tmp_path / "folder" / "study.toml").write_text('name = "s"\n')
    for record in (named, alone):
        send_one(record.path, uri)
    before, experiments = rows(uri), MlflowClient(tracking_uri=uri).search_experiments()
    result = CliRunner().invoke(cli, ["mirror", str(tmp_path), "--to", uri], catch_exceptions=False)
    assert result.output.count(" 0 new points") == 2 and rows(uri) == before
    assert len(MlflowClient(tracking_uri=uri).search_experiments()) == len(experiments)
    assert [len(runs_of(uri, study)) for study in ("s", "lone")] == [2, 2]


def test_study_stays_failed_when_only_its_finished_run_is_mirrored(tmp_path: Path, uri: str) -> None:
    """The other run was killed. Both `flowrace mirror` and `flowrace run` mirror the finished one."""
    study = tmp_path / "s"
    done, killed = written(study / "abc", events(4)), written(study / "abd", events(4), done=False)
    (study / "study.toml").write_text('name = "s"\n')
    (study / "plan.json").write_text(
        json.dumps({"runs": [{"id": "abc", "cell": {}}, {"id": "abd", "cell": {}}]})
    )

    def parent() -> str:
        (found,) = [run for run in runs_of(uri, "s") if "flowrace.study" in run.data.tags]
        return found.info.status

    mirror([done, killed], uri=uri, study="s", complete=True)
    assert parent() == "FAILED"
    CliRunner().invoke(cli, ["mirror", str(done.path), "--to", uri], catch_exceptions=False)
    send_one(done.path, uri)
    assert parent() == "FAILED"
    written(killed.path, [], after=4)
    CliRunner().invoke(cli, ["mirror", str(study), "--to", uri], catch_exceptions=False)
    assert parent() == "FINISHED"


def test_mirror_sends_a_run_from_within_its_folder(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(written(tmp_path / "lone" / "abc", events(4)).path)
    CliRunner().invoke(cli, ["mirror", ".", "--to", uri], catch_exceptions=False)
    assert child(uri, "lone").data.tags["flowrace.run_id"] == "abc"
