"""The MLflow mirror equals the record, without duplicates, after any interruption; read back with MLflow's
own client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from harness.errors import UserError
from harness.records.evaluations import Conditions, add_evaluation
from harness.records.flatten import flatten, points
from harness.records.mlflow_mirror import Unsent, durable, mirror
from harness.records.mlflow_store import create_store, store_uri
from harness.records.record import Record, tracked_name
from harness.records.record_writer import RecordWriter
from harness.records.study_folder import StudyFolder
from tests.support.features import quick
from tests.support.forked import exit_code, fork_printing
from tests.support.mlflow_runs import (
    SPEC,
    STARTED,
    checkpoint,
    child,
    events,
    expected,
    rows,
    runs_of,
    train,
    written,
)


def test_finished_run_is_mirrored_completely_and_once(tmp_path: Path, uri: str) -> None:
    record = written(tmp_path / "abc", events(10))
    study = tmp_path / "study.toml"
    study.write_text('name = "s"\n')
    first = mirror([record], uri=uri, study="s", artifacts=[study], complete=True)
    again = mirror([Record(record.path)], uri=uri, study="s", artifacts=[study], complete=True)
    assert rows(uri) == expected(record, upto=10)
    assert first.points == rows(uri).total() and again.points == 0

    run, client = child(uri), MlflowClient(tracking_uri=uri)
    params = {"seed": "1", "method.name": "repa", "method.coefficient": "0.5", "train.betas": "[0.9, 0.999]"}
    assert run.data.params == params | {"data.root": ""}
    assert run.info.status == "FINISHED"
    assert run.info.start_time == STARTED and run.info.end_time == STARTED + 2510
    tags = {"run_id": "abc", "method": "repa", "seed": "1", "status": "done"}
    assert {f"flowrace.{name}": value for name, value in tags.items()}.items() <= run.data.tags.items()
    assert [a.path for a in client.list_artifacts(run.info.run_id)] == ["samples", "spec.toml"]
    pictures = [a.path for a in client.list_artifacts(run.info.run_id, "samples")]
    assert pictures == ["samples/step-00000004.png", "samples/step-00000008.png"]

    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["flowrace.study"] == "s" and parent.info.status == "FINISHED"
    assert [a.path for a in client.list_artifacts(parent.info.run_id)] == ["study.toml"]
    assert len(runs_of(uri, "s")) == 2


def test_reading_of_gradients_has_the_time_of_the_last_event_before_it(tmp_path: Path, uri: str) -> None:
    reading = {"kind": "gradients", "step": 4, "share": 0.25, "norms": {"flow": 2.0}, "cosine": None}
    record = written(tmp_path / "abc", [*events(4), reading])
    mirror([record], uri=uri, study="s")
    run, client = child(uri), MlflowClient(tracking_uri=uri)
    (point,) = client.get_metric_history(run.info.run_id, "gradients/share")
    spent = [event["seconds"] for event in record.events if "seconds" in event][-1]
    assert (point.value, point.step) == (0.25, 4)
    assert point.timestamp == STARTED + round(1000 * sum(spent.values())) > STARTED
    assert "gradients/norms/flow" in run.data.metrics and "gradients/cosine" not in run.data.metrics


def test_artifacts_are_stored_next_to_the_database(tmp_path: Path, uri: str) -> None:
    mirror([written(tmp_path / "abc", events(4))], uri=uri, study="s")
    assert list((tmp_path / "store" / "mlruns" / "s").rglob("spec.toml"))


def test_unfinished_run_is_mirrored_up_to_its_last_checkpoint(tmp_path: Path, uri: str) -> None:
    record = written(tmp_path / "abc", events(6), done=False)
    assert [event["step"] for event in durable(record)][-1] == 4
    mirror([record], uri=uri, study="s", complete=True)
    assert rows(uri) == expected(record, upto=4)
    assert child(uri).info.status == "KILLED"
    assert {run.info.status for run in runs_of(uri, "s")} == {"KILLED", "FAILED"}

    slower = [{**event, "seconds": {"student": 99.0, "ema": 0.0}} for event in events(10)[6:]]
    slower = [event if event["kind"] != "checkpoint" else checkpoint(event["step"]) for event in slower]
    continued = written(record.path, slower, after=4)
    mirror([continued], uri=uri, study="s", complete=True)
    assert rows(uri) == expected(continued, upto=10)
    assert {run.info.status for run in runs_of(uri, "s")} == {"FINISHED"}


def test_failed_run_has_its_reason_as_a_tag(tmp_path: Path, uri: str) -> None:
    record = written(tmp_path / "abc", events(4), done=False)
    with RecordWriter(record.path) as writer:
        writer.fail({"reason": "the loss is not finite at step 5"})
    mirror([record], uri=uri, study="s")
    assert child(uri).info.status == "FAILED"
    assert child(uri).data.tags["flowrace.failure"] == "the loss is not finite at step 5"


def test_interrupted_mirroring_is_completed_by_the_next(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = written(tmp_path / "abc", events(400, every=100))
    log_batch, calls = MlflowClient.log_batch, []

    def dies(self: MlflowClient, *args: Any, **kwargs: Any) -> None:
        calls.append(kwargs)
        if len(calls) == 3:
            raise KeyboardInterrupt
        log_batch(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        mirror([record], uri=uri, study="s")
    monkeypatch.undo()
    assert 0 < rows(uri).total() < expected(record, upto=400).total()
    mirror([record], uri=uri, study="s")
    assert rows(uri) == expected(record, upto=400)


def test_retrained_run_replaces_the_mirrored_one(tmp_path: Path, uri: str) -> None:
    mirror([written(tmp_path / "one" / "abc", events(8))], uri=uri, study="s")
    other = [{**event, "loss": 7.0} if event["kind"] == "train" else event for event in events(8)]
    retrained = written(tmp_path / "two" / "abc", other)
    mirror([retrained], uri=uri, study="s")
    assert rows(uri) == expected(retrained, upto=8)


def test_shorter_copy_of_a_run_changes_nothing(tmp_path: Path, uri: str) -> None:
    longer = written(tmp_path / "one" / "abc", events(8))
    mirror([longer], uri=uri, study="s")
    mirror([written(tmp_path / "two" / "abc", events(4), done=False)], uri=uri, study="s")
    assert rows(uri) == expected(longer, upto=8)
    assert child(uri).info.status == "FINISHED"


def test_batches_respect_the_limits_of_mlflow(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPEC + "[many]\n" + "".join(f"f{i} = {i}\n" for i in range(130)) + f'long = "{"x" * 7000}"\n'
    record = written(tmp_path / "abc", events(200, every=50), spec=spec)
    sizes, log_batch = [], MlflowClient.log_batch

    def counted(self: MlflowClient, *args: Any, **kwargs: Any) -> None:
        sizes.append((len(kwargs.get("metrics", ())), len(kwargs.get("params", ()))))
        log_batch(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    mirror([record], uri=uri, study="s")
    assert max(metrics for metrics, _ in sizes) <= 1000 and max(params for _, params in sizes) <= 100
    assert rows(uri) == expected(record, upto=200)
    run = child(uri)
    assert len(run.data.params) == 135 and "many.long" not in run.data.params
    assert run.data.tags["flowrace.only_in_spec"] == "many.long"


def test_points_leave_out_non_finite_numbers() -> None:
    event = train(1) | {"loss": float("inf"), "grad_norm": float("nan"), "learning_rate": None, "flops": True}
    assert set(points(event)) == {"train/losses/flow", "cost/seconds/student", "cost/seconds/ema"}
    interval = {"mean": 2.0, "low": 1.5, "high": float("inf"), "n": 3}
    assert points({"kind": "eval", "step": 1, "metrics": {"fd": interval}}) == {
        "eval/fd": 2.0,
        "eval/fd/low": 1.5,
    }


def test_non_finite_metrics_are_listed_in_a_tag(tmp_path: Path, uri: str) -> None:
    record = written(tmp_path / "r", events(4))
    file = record.path / "events.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    lines[1] = json.dumps(train(2) | {"grad_norm": float("inf")}) + "\n"
    file.write_text("".join(lines))
    mirror([Record(record.path)], uri=uri, study="s")
    assert child(uri).data.tags["flowrace.not_finite"] == "train/grad_norm at step 2: inf"
    assert {step for key, step, *_ in rows(uri) if key == "train/grad_norm"} == {1, 3, 4}


def test_duplicate_runs_are_merged(tmp_path: Path, uri: str) -> None:
    record = written(tmp_path / "r", events(8))
    mirror([record], uri=uri, study="s")
    client, first = MlflowClient(tracking_uri=uri), child(uri)
    for name, value in (("flowrace.run_id", record.id), ("flowrace.study", "s")):
        client.create_run(first.info.experiment_id, tags={name: value})
    assert mirror([record], uri=uri, study="s").points == 0
    assert child(uri).info.run_id == first.info.run_id
    assert len(runs_of(uri, "s")) == 2 and rows(uri) == expected(record, 8)


@pytest.mark.slow
def test_two_processes_can_create_one_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    records = [written(tmp_path / name, events(40)) for name in ("a", "b")]
    outputs = [tmp_path / name for name in ("first.txt", "second.txt")]
    both = [
        fork_printing(lambda own=record: mirror([own], uri=uri, study="s"), output)
        for record, output in zip(records, outputs, strict=True)
    ]
    assert [exit_code(process) for process in both] == [0, 0]
    assert [output.read_text() for output in outputs] == ["", ""]
    assert rows(uri) == expected(records[0], upto=40) + expected(records[1], upto=40)
    assert len(runs_of(uri, "s")) == 3


def test_store_uri_prefers_argument_then_environment_then_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert create_store() == f"sqlite:///{tmp_path}/mlflow.db" and (tmp_path / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert store_uri() == "http://host:5000"
    assert store_uri("sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db"


@pytest.mark.parametrize("bad", ["nonsense://x", "/a/folder"])
def test_unusable_store_is_reported_in_one_sentence(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^cannot mirror into {bad}: [^\n]+$"):
        create_store(bad)


def test_store_is_rejected_when_its_folder_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot mirror into sqlite:///"):
        create_store(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_error_hides_passwords() -> None:
    with pytest.raises(UserError) as error:
        create_store("nonsense://me:secret@host/db")
    assert "nonsense://host/db" in str(error.value) and "secret" not in str(error.value)


def test_mirror_is_rejected_when_mlflow_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.records.mlflow_store.find_spec", lambda name: None)
    with pytest.raises(UserError, match="MLflow is not installed"):
        mirror([], uri="sqlite:///x.db", study="s")


def test_importing_the_mirror_imports_neither_mlflow_nor_torch() -> None:
    code = "import sys, harness.records.mlflow_mirror; print('mlflow' in sys.modules, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert result.stdout.split() == ["False", "False"]


def test_flatten_joins_keys_with_dots() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e.f": 3}) == {"a.b.c": 1, "a.d": [2], "e.f": 3}


SCRIPTED = "fd:torchscript@d7826800?size=8"
"""A metric with a custom network, as named in a record. MLflow rejects `@`, `?` and `=`."""


def scripted(path: Path) -> Record:
    """Write a finished run that is measured with the custom network."""
    found = [json.loads(json.dumps(event).replace("fd:local", SCRIPTED)) for event in events(8)]
    return written(path, found, spec=SPEC + '[eval.weights]\n"torchscript@d7826800?size=8" = "/n/net.ts"\n')


def test_names_that_mlflow_rejects_are_rewritten(tmp_path: Path, uri: str) -> None:
    mirror([scripted(tmp_path / "abc")], uri=uri, study="s")
    named = "fd:torchscript_d7826800_size_8"
    history = MlflowClient(tracking_uri=uri).get_metric_history(child(uri).info.run_id, f"eval/{named}")
    assert [(point.step, point.value) for point in history] == [(4, 2.5), (8, 1.25)]
    assert child(uri).data.params["eval.weights.torchscript_d7826800_size_8"] == "/n/net.ts"


@quick
@given(st.text(min_size=1))
def test_tracked_name_is_always_valid_for_mlflow(name: str) -> None:
    from mlflow.utils.validation import validate_param_and_metric_name as taken

    assert taken(tracked_name(name)) and len(tracked_name(name)) == len(name)
    assert tracked_name(name) == name or not taken(name) or "\n" in name


def test_run_rejected_by_the_store_does_not_stop_the_others(tmp_path: Path, uri: str) -> None:
    long = written(tmp_path / "abc", events(4), spec=SPEC + f"[data.{'x' * 260}]\ny = 1\n")
    fine = written(tmp_path / "abd", events(4))
    with pytest.raises(Unsent, match=r"cannot mirror \S*/abc: .*exceeds the maximum length") as error:
        mirror([long, fine], uri=uri, study="s", complete=True)
    assert error.value.summary.runs == 1 and rows(uri) == expected(fine, 4)


def test_later_evaluations_are_mirrored_once_under_their_conditions(tmp_path: Path, uri: str) -> None:
    conditions = Conditions.of_spec({}).as_dict() | {"n_fake": 24}
    protocols = {"p": conditions, "q": conditions | {"guidance": 1.5}}
    record = written(tmp_path / "abc", [e | {"protocol": "p"} for e in events(8) if e["kind"] == "eval"])
    mirror([record], uri=uri, study="s")

    def later(step: int, protocol: str, name: str, mean: float) -> None:
        row = {"mean": mean, "low": None, "high": None, "n": 24}
        line = {"kind": "eval", "step": step, "images": 0, "metrics": {name: row}, "protocol": protocol}
        add_evaluation(record.path, line, {"protocol": protocols[protocol]})

    (record.path / "protocols.json").write_text(json.dumps({"p": {"protocol": protocols["p"]}}))
    later(4, "p", "recall:local", 0.5)
    later(4, "q", "fd:local", 3.0)
    later(8, "p", "fd:local", 9.0)
    for _ in range(2):
        mirror([Record(record.path)], uri=uri, study="s")
    values = {(name, step): value for name, step, value, _ in rows(uri)}
    assert values["eval/recall:local", 4] == 0.5 and values["eval/fd:local/guidance_1.5", 4] == 3.0
    assert values["eval/fd:local", 8] == 10.0 / 8 and rows(uri).total() == 4


@pytest.mark.parametrize("name", ["../../../../escaped/here", "/absolute", "a\x00b", "x" * 501, ".."])
def test_study_whose_name_is_a_path_or_too_long_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    folder, store = tmp_path / "in" / "study", tmp_path / "out" / "store.db"
    written(folder / "r1", events(4))
    quoted = json.dumps(name)
    (folder / "study.toml").write_text(f"name = {quoted}\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="name = '"):
        _ = StudyFolder(folder).name
    with pytest.raises(UserError, match="the name of the study = '"):
        mirror([Record(folder / "r1")], study=name, uri=f"sqlite:///{store}")
    assert sorted(tmp_path.rglob("*")) == before
