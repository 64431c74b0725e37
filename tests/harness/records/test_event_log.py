"""Train lines and evaluations as columns: the same numbers as objects, and the same errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import UserError
from harness.records import event_log, measured
from harness.records.columns import TRAINING_PHASES, CostColumns
from harness.records.evaluation_columns import EvaluationColumns
from harness.records.event_log import EventLog, log_of, read_log
from harness.records.events import read_events
from harness.records.in_threads import read_ahead
from harness.records.record import EVENTS, Record
from tests.reports.synthetic import write_run

LINES = 12


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read files of every size as columns."""
    monkeypatch.setattr(event_log, "WORTH", 0)


def train(step: int, /, **changed: Any) -> dict[str, Any]:
    seconds = {"student": 0.1 * step, "data": 1 / 3 * step, "ema": 1e-3 * step, "eval": 0.7}
    about = {"images": 8 * step, "loss": 1.0, "losses": {"flow": 0.5, "align": -0.5}, "grad_norm": 0.3}
    costs = {"learning_rate": 1e-4, "flops": 3 * 10**20 * step, "seconds": seconds}
    return {"kind": "train", "step": step, **about, **costs, **changed}


def evaluation(step: int) -> dict[str, Any]:
    metrics = {"fid": {"mean": 1 / step, "low": None, "high": None, "n": 10}}
    spent = {"images": 8 * step, "flops": step, "seconds": {"student": 0.1 * step}}
    return {"kind": "eval", "step": step, "metrics": metrics, "protocol": "one", **spent}


def lines_of(events: list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(event, separators=(",", ":")).encode() for event in events]


def usual() -> list[dict[str, Any]]:
    return [event for step in range(1, LINES + 1) for event in (train(step), evaluation(step))]


def written(file: Path, lines: list[bytes], end: bytes = b"\n") -> Path:
    file.write_bytes(b"\n".join(lines) + end)
    return file


def assert_same(found: EventLog, expected: EventLog) -> None:
    assert list(found.evaluations) == expected.evaluations and found.others == expected.others
    assert found.last_trained == expected.last_trained
    assert found.last == expected.last and found.last_timed == expected.last_timed
    assert found.trained is not None and expected.trained is not None
    assert_same_costs(found.trained, expected.trained)


def assert_same_costs(found: CostColumns, expected: CostColumns) -> None:
    for name in ("steps", "images", "flops", "seconds"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), name


def without_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the lines were read as objects")

    monkeypatch.setattr(event_log, "events_in", refuse)


def test_columns_have_the_bits_of_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = usual()
    # Phases begin at their first use, and a method may log other losses later.
    events[0]["seconds"] = {"student": 0.1, "teacher": 0.25}
    events[-2]["losses"] = {"flow": 0.5, "sra": 0.1}
    file = written(tmp_path / EVENTS, lines_of(events))
    expected = log_of(read_events(file))
    without_objects(monkeypatch)
    found = read_log(file)
    assert_same(found, expected)
    assert found.trained is not None
    assert found.trained.seconds[3] == sum(events[6]["seconds"].get(phase, 0.0) for phase in TRAINING_PHASES)


def test_a_torn_last_line_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / EVENTS, lines_of(usual()), end=b'\n{"kind":"train","st')
    expected = log_of(read_events(file))
    without_objects(monkeypatch)
    assert_same(read_log(file), expected)


def test_the_last_event_with_seconds_may_be_of_any_kind(tmp_path: Path) -> None:
    events = [*usual(), {"kind": "checkpoint", "step": LINES, "file": "x"}]
    found = read_log(written(tmp_path / EVENTS, lines_of(events)))
    assert found.last == events[-1] and found.last_timed == events[-2] and found.last_trained == events[-3]


@pytest.mark.parametrize(
    "changed",
    [
        {"loss": "low"},
        {"loss": None},
        {"step": 1.5},
        {"step": True},
        {"images": -1},
        {"flops": "many"},
        {"flops": 1e301},
        {"seconds": None},
        {"seconds": {"student": -0.1}},
        {"seconds": {"student": None}},
        {"losses": None},
        {"losses": {"flow": None}},
        {"losses": {"flow": 1e300}},
        {"grad_norm": []},
        {"images": float("nan")},
        {"seconds": {"student": float("nan")}},
    ],
    ids=str,
)
def test_an_invalid_train_line_has_the_error_of_objects(changed: dict[str, Any], tmp_path: Path) -> None:
    events = usual()
    events[6] = train(4, **changed)
    file = written(tmp_path / EVENTS, lines_of(events))
    with pytest.raises(UserError, match="line 7") as expected:
        read_events(file)
    with pytest.raises(UserError) as found:
        read_log(file)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind":"train","step":4,"loss":1}{"kind":"train","step":4,"loss":1}',
        b'{"kind":"train","step":4,"losses":{"flow":1},"loss":' + b"[" * 5000,
        b'{"kind":"train","step":4',
        b'{"kind":"train",}',
        b"",
    ],
    ids=["two objects", "deep", "open", "comma", "empty"],
)
def test_a_line_that_is_no_event_has_the_error_of_objects(line: bytes, tmp_path: Path) -> None:
    lines = lines_of(usual())
    lines[6] = line
    file = written(tmp_path / EVENTS, lines)
    with pytest.raises(UserError, match="line 7 is not an event"):
        read_log(file)


@pytest.mark.parametrize(
    "event",
    [
        train(4, grad_norm=None),
        train(4, loss=float("nan")),
        train(4, note="of a later version"),
        train(4, losses={f"part {n}": 0.5 for n in range(500)}),
        {name: value for name, value in train(4).items() if name != "losses"},
        dict(reversed(train(4).items())),
    ],
    ids=["null", "not finite", "unknown field", "long", "without losses", "another order"],
)
def test_a_valid_line_of_another_form_is_read(event: dict[str, Any], tmp_path: Path) -> None:
    events = usual()
    events[6] = event
    file = written(tmp_path / EVENTS, lines_of(events))
    assert_same(read_log(file), log_of(read_events(file)))


def test_a_duplicate_field_counts_as_in_json(tmp_path: Path) -> None:
    lines = lines_of(usual())
    lines[6] = lines[6].replace(b'"images":32', b'"images":31,"images":32')
    file = written(tmp_path / EVENTS, lines)
    assert_same(read_log(file), log_of(read_events(file)))


def test_a_finished_run_without_its_end_is_refused_as_by_events(tmp_path: Path) -> None:
    record = write_run(tmp_path / "run", set_={"train.steps": 2000})
    file = record.path / EVENTS
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:10]))
    with pytest.raises(UserError, match="is cut short") as expected:
        _ = Record(record.path).events
    with pytest.raises(UserError) as found:
        _ = Record(record.path).log
    assert str(found.value) == str(expected.value)


def test_columns_are_read_again_after_they_were_taken(tmp_path: Path) -> None:
    record = write_run(tmp_path / "run")
    first = record.take_columns()
    assert record.log.trained is None
    assert np.array_equal(record.take_columns().seconds, first.seconds)


def test_reading_ahead_leaves_errors_to_the_first_use(tmp_path: Path) -> None:
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad")
    with open(bad.path / EVENTS, "a") as file:
        file.write("no event\n")
    assert read_ahead([good, bad], lambda record: record.last_step) == {good.path: 2000}
    (good.path / EVENTS).unlink()
    assert good.last_step == 2000
    with pytest.raises(UserError, match="is not an event"):
        _ = bad.last_step


def read_both(tmp_path: Path, events: list[dict[str, Any]]) -> tuple[Record, Record]:
    """Return the record of events, and the same one whose log is of objects."""
    records = [write_run(tmp_path / name, set_={"train.steps": LINES}) for name in ("columns", "objects")]
    for record in records:
        written(record.path / EVENTS, lines_of(events))
    vars(records[1])["log"] = log_of(read_events(records[1].path / EVENTS))
    return records[0], records[1]


def test_evaluations_in_columns_have_the_bits_of_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [train(0), evaluation(LINES + 1) | {"step": 0, "seconds": {"eval": 0.5}}, *usual()]
    events.append({"kind": "checkpoint", "step": LINES, "file": "x"})
    for event in events:
        if event["kind"] == "eval":
            # A count as mean, an interval in part, and n absent.
            event["metrics"]["kid"] = {"mean": event["step"], "low": 0.1, "high": None}
    events[-4]["metrics"]["kid"]["mean"] = float("inf")
    expected = log_of(read_events(written(tmp_path / EVENTS, lines_of(events))))
    columns, objects = read_both(tmp_path, events)
    without_objects(monkeypatch)
    found = columns.log.evaluations
    assert isinstance(found, EvaluationColumns) and columns.columns is found and objects.columns is None
    assert_same(columns.log, expected)
    assert found[-1] == expected.evaluations[-1] and found[:2] == expected.evaluations[:2]
    assert columns.of("eval") == objects.of("eval") and columns.evaluations == objects.evaluations
    assert_same_costs(measured.evaluation_costs(columns), measured.evaluation_costs(objects))
    assert measured.metric_names(columns) == measured.metric_names(objects) == ["fid", "kid"]
    assert measured.last_evaluation(columns) == measured.last_evaluation(objects)
    for metric in ("fid", "kid", "1-kid", "other"):
        ours, theirs = measured.measured(columns, metric), measured.measured(objects, metric)
        assert (ours is None) == (theirs is None) == (metric == "other")
        if ours is not None and theirs is not None:
            assert np.array_equal(ours.steps, theirs.steps) and ours.steps[0] == 1
            assert np.array_equal(ours.means, theirs.means) and ours.weights is theirs.weights is None
        assert measured.last_row(columns, metric) == measured.last_row(objects, metric)
        assert measured.protocol_hashes(columns, metric) == measured.protocol_hashes(objects, metric)


OTHER_FORMS = {
    "errors": {"errors": {"kid": "no memory"}},
    "replicates": {"metrics": {"fid": {"mean": 1.0, "replicates": [1.0, 1.5]}}},
    "another metric": {"metrics": {"kid": {"mean": 1.0}}},
    "a further metric": {"metrics": {"fid": {"mean": 1.0}, "kid": {"mean": 1.0}}},
    "no metric": {"metrics": {}},
    "another protocol of a metric": {"protocols": {"fid": "two"}},
    "long": {"seconds": {f"phase {n}": 0.5 for n in range(500)}},
}


@pytest.mark.parametrize("changed", OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_evaluations_of_another_form_are_objects(changed: dict[str, Any], tmp_path: Path) -> None:
    events = usual()
    events[7] |= changed
    columns, objects = read_both(tmp_path, events)
    assert isinstance(columns.log.evaluations, list) and columns.columns is None
    assert repr(columns.log.evaluations) == repr(objects.log.evaluations)
    assert measured.evaluation_errors(columns) == list(changed.get("errors", {}).items())
    assert measured.metric_names(columns) == measured.metric_names(objects)


@pytest.mark.parametrize(
    "changed",
    [
        {"step": -1},
        {"step": 1.5},
        {"images": -1},
        {"flops": None},
        {"flops": float("nan")},
        {"seconds": {"student": float("inf")}},
        {"seconds": {"student": None}},
        {"seconds": {"student": -1}},
        {"metrics": None},
        {"metrics": {"fid": None}},
        {"metrics": {"fid": {"mean": None}}},
        {"metrics": {"fid": {"mean": 1e300}}},
        {"metrics": {"fid": {"mean": 1.0, "low": "none"}}},
        {"metrics": {"fid": {"mean": 1.0, "n": -1}}},
        {"metrics": {"fid": {"mean": 1.0, "n": 1.5}}},
        {"protocol": None},
        {"kind": None},
    ],
    ids=str,
)
def test_an_invalid_evaluation_has_the_error_of_objects(changed: dict[str, Any], tmp_path: Path) -> None:
    events = usual()
    events[7] |= changed
    file = written(tmp_path / EVENTS, lines_of(events))
    with pytest.raises(UserError, match="line 8") as expected:
        read_events(file)
    with pytest.raises(UserError) as found:
        read_log(file)
    assert str(found.value) == str(expected.value)


def test_an_evaluation_that_repeats_a_step_is_merged_as_from_objects(tmp_path: Path) -> None:
    columns, objects = read_both(tmp_path, [*usual(), evaluation(LINES)])
    assert columns.columns is None
    assert columns.of("eval") == objects.of("eval") and len(columns.of("eval")) == LINES
