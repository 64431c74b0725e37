"""The run directory after crashes at any point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from harness.files.files import write_atomic
from harness.records.record import Record, failure_reason, find_records, lock_holder, log_file
from harness.records.record_writer import RecordWriter
from tests.support.runs import events, tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")

TRAIN = {"kind": "train", "images": 0, "loss": 1.0}


def written(path: Path, steps: int, after: int = 0) -> Record:
    with RecordWriter(path) as record:
        record.write_spec("seed = 0\n")
        record.begin({"threads": 1}, after_step=after)
        for step in range(after + 1, steps + 1):
            record.append({**TRAIN, "step": step, "loss": float(step)})
    return Record(path)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(steps=st.integers(1, 12), kept=st.integers(0, 12), cut=st.integers(0, 400))
def test_record_cut_anywhere_continues_without_gap_or_duplicate(
    tmp_path_factory, steps: int, kept: int, cut: int
) -> None:
    """Cut at any byte and continued after any remaining step, the file equals that of an unbroken run."""
    path = tmp_path_factory.mktemp("run") / "r"
    full = written(path, steps).path.joinpath("events.jsonl").read_bytes()
    (path / "events.jsonl").write_bytes(full[: len(full) - min(cut, len(full))])
    restored = min(kept, Record(path).last_step)
    assert written(path, steps, after=restored).path.joinpath("events.jsonl").read_bytes() == full


def test_second_writer_is_rejected_naming_the_first(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "r"):
        code = (
            "import sys; from pathlib import Path; from harness.records.record_writer import RecordWriter\n"
            "with RecordWriter(Path(sys.argv[1])): pass"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "r")], capture_output=True, text=True
        )
        assert other.returncode == 1 and f"in use by process {os.getpid()}" in other.stderr
        assert str(os.getpid()) in lock_holder(tmp_path / "r")
    assert lock_holder(tmp_path / "r") is None


def test_status_follows_the_run(tmp_path: Path) -> None:
    path = tmp_path / "r"
    assert Record(path).status == "missing"
    written(path, 2)
    assert Record(path).status == "stopped"
    with RecordWriter(path) as record:
        assert Record(path).status == "running"
        record.fail({"reason": "no"})
    assert Record(path).status == "failed" and Record(path).failure == {"reason": "no"}
    with RecordWriter(path) as record:
        record.begin({}, after_step=2)
        record.finish({"step": 2})
    assert Record(path).status == "done" and Record(path).failure is None
    assert [record.path for record in find_records(tmp_path)] == [path]


def finished(path: Path, spec: str = "[train]\nsteps = 3\n", steps: int = 3) -> Path:
    """Write a finished run with an evaluation at its last step, and return its event file."""
    with RecordWriter(path) as record:
        record.write_spec(spec)
        record.begin({}, after_step=0)
        for step in range(1, steps + 1):
            record.append({**TRAIN, "step": step})
        record.append({"kind": "eval", "step": steps, "images": 0, "metrics": {}, "protocol": "p"})
        record.finish({})
    return path / "events.jsonl"


@pytest.mark.parametrize("spec", ["[train]\nsteps = 3\n", "seed = 0\n"])
def test_finished_record_is_rejected_when_its_end_is_missing(tmp_path: Path, spec: str) -> None:
    """Cut at any byte; if the spec has no `steps`, at any byte except the end of a line."""
    file = finished(tmp_path / "r", spec)
    full = file.read_bytes()
    assert len(Record(tmp_path / "r").events) == 4
    for length in range(len(full)):
        file.write_bytes(full[:length])
        if "steps" not in spec and full[:length].endswith(b"\n"):
            continue
        with pytest.raises(
            UserError, match=r"events\.jsonl is cut short: .*the run is marked as done\. Restore"
        ):
            Record(tmp_path / "r").events  # noqa: B018
    (tmp_path / "r" / "done").unlink()
    assert len(Record(tmp_path / "r").events) == 3


def test_cut_record_error_names_its_last_step(tmp_path: Path) -> None:
    file = finished(tmp_path / "r")
    lines = file.read_bytes().splitlines(keepends=True)
    for kept, end in ((2, "its last complete line has step 2 of 3,"), (0, "it has no events, but")):
        file.write_bytes(b"".join(lines[:kept]))
        with pytest.raises(UserError, match=end):
            Record(tmp_path / "r").events  # noqa: B018
    file.unlink()
    with pytest.raises(UserError, match="it has no events, but"):
        Record(tmp_path / "r").events  # noqa: B018


def test_cut_record_continues_when_the_error_is_followed(tmp_path: Path) -> None:
    """Without `done` and the unmentioned checkpoints, the run ends with the events of an unbroken one."""
    spec = tiny("train.steps=4", "train.checkpoint_every=2", "eval.every=2", "eval.samples=16")
    record = trained(spec, tmp_path)
    unbroken, file = events(record), record.path / "events.jsonl"
    lines = file.read_bytes()
    file.write_bytes(lines[: lines.rindex(b'{"kind":"eval"') + 50])
    with pytest.raises(
        UserError, match="delete `done` and the checkpoints that the file does not mention, and rerun"
    ):
        Record(record.path).events  # noqa: B018
    (record.path / "done").unlink()
    named = {event["file"] for event in Record(record.path).of("checkpoint")}
    for checkpoint in (record.path / "checkpoints").iterdir():
        if checkpoint.name not in named:
            checkpoint.unlink()
    assert events(trained(spec, tmp_path)) == unbroken


@pytest.mark.parametrize("name", ["events.jsonl", "environment.json"])
def test_unreadable_file_is_a_user_error(tmp_path: Path, name: str) -> None:
    record = written(tmp_path / "r", 1)
    (record.path / name).unlink()
    (record.path / name).mkdir()
    with pytest.raises(UserError, match=rf"cannot read \S*{name}: Is a directory"):
        Record(record.path).events + Record(record.path).environment


def test_append_rejects_numbers_that_json_lacks(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "r") as record:
        record.begin({}, after_step=0)
        with pytest.raises(ValueError):
            record.append({**TRAIN, "step": 1, "loss": float("nan")})
    assert Record(tmp_path / "r").events == []


def test_broken_line_is_reported_by_number(tmp_path: Path) -> None:
    record = written(tmp_path / "r", 3)
    file = record.path / "events.jsonl"
    file.write_text(file.read_text().replace('"step":2', '"step":"two"'))
    with pytest.raises(UserError, match="line 2 is not an event"):
        Record(tmp_path / "r").events  # noqa: B018
    with pytest.raises(UserError, match="no such folder"):
        find_records(tmp_path / "absent")
    with pytest.raises(UserError, match="is not a run directory"):
        Record(tmp_path).spec  # noqa: B018


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a.json", b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError):
        write_atomic(tmp_path / "a.json", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(f'"{(tmp_path / "a.json").read_text()}"') == "old"


def test_failure_reason_prefers_signal_error_line_and_record(tmp_path: Path) -> None:
    log = log_file(tmp_path / "x")
    with RecordWriter(tmp_path / "x") as record:
        record.fail({"reason": "the loss is not finite"})
    found = Record(tmp_path / "x")
    assert failure_reason(found, exit_code=1) == "the loss is not finite"
    log.parent.mkdir()
    log.write_text("Traceback\n  line\nerror: no such folder: data\n\n")
    assert failure_reason(found, exit_code=1) == failure_reason(found) == "no such folder: data"
    log.write_text("what torchrun prints last\n")
    assert failure_reason(found, exit_code=1) == "the loss is not finite"
    assert failure_reason(found, exit_code=-11) == "killed by SIGSEGV"


def test_failure_reason_falls_back_to_log_exit_code_and_nothing(tmp_path: Path) -> None:
    missing = Record(tmp_path / "y")
    assert failure_reason(missing) == "no reason recorded"
    assert failure_reason(missing, exit_code=7) == "exit code 7"
    log_file(missing.path).parent.mkdir()
    log_file(missing.path).write_text("Segmentation fault\n")
    assert failure_reason(missing, exit_code=7) == "Segmentation fault"


@pytest.mark.parametrize(
    ("event", "fault"),
    [
        ({"kind": "train", "step": True, "loss": 1.0}, "step is no whole number"),
        ({"kind": "train", "step": -1, "loss": 1.0}, "step is no whole number"),
        ({"kind": "train", "step": 10**30, "loss": 1.0}, "step is no whole number"),
        ({"kind": "train", "step": 1}, "has a loss that is no number"),
        ({"kind": "train", "step": 1, "loss": "1"}, "has a loss that is no number"),
        ({"kind": "train", "step": 1, "loss": 1.0, "flops": float("inf")}, "has flops that are no number"),
        ({"kind": "train", "step": 1, "loss": 1.0, "seconds": [1]}, "has seconds that are no table"),
        ({"kind": "train", "step": 1, "loss": 1.0, "seconds": {"data": -1}}, "has seconds that are no table"),
        ({"kind": "eval", "step": 1, "metrics": [1]}, "has metrics that are no table"),
        ({"kind": "eval", "step": 1, "metrics": {"fid": {}}}, "has a metric 'fid' without a mean"),
        ({"kind": "eval", "step": 1, "metrics": {"fid": {"mean": 10**400}}}, "has a metric 'fid' without"),
        ({"kind": "eval", "step": 1, "protocol": 3}, "has a protocol that is no text"),
    ],
)
def test_event_with_an_impossible_value_is_named(tmp_path: Path, event: dict[str, Any], fault: str) -> None:
    (tmp_path / "spec.toml").write_text("seed = 0\n")
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    with pytest.raises(UserError, match=rf"events\.jsonl line 1 .*{fault}"):
        _ = Record(tmp_path).events


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("train = 3", "train is no table"),
        ('seed = "0"', "seed is no whole number"),
        ("[method]\nname = 3", r"method\.name is no text"),
        ("[train]\nsteps = 0", r"train\.steps is no whole number above 0"),
        ("[eval]\nguidance = nan", r"eval\.guidance is no finite number"),
        ("[eval]\nmetrics = 3", r"eval\.metrics is no list of names"),
    ],
)
def test_spec_of_a_record_with_an_impossible_value_is_named(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "spec.toml").write_text(text)
    with pytest.raises(UserError, match=rf"spec\.toml is not the spec of a run: {fault}"):
        _ = Record(tmp_path).spec


@pytest.mark.parametrize("text", ["3", "[3]", '[{"packages": 3}]', '[{"evaluation": {"hash": 3}}]'])
def test_environment_of_another_shape_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "environment.json").write_text(text)
    with pytest.raises(UserError, match=r"environment\.json (is no list|has a start)"):
        _ = Record(tmp_path).environment
