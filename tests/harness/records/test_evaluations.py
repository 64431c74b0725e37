"""Later evaluations in a run directory: appended completely and once, merged by conditions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.evaluation_spec import EvalSpec
from harness.evaluation.protocol import NOT_PROTOCOL
from harness.records.evaluations import Conditions, add_evaluation, read_evaluations, varied
from harness.records.record import Record
from harness.records.record_writer import RecordWriter

ROW = {"mean": 2.0, "low": None, "high": None, "n": 8}


def line(step: int, protocol: str = "p", **metrics: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "eval", "step": step, "images": 8 * step, "metrics": metrics, "protocol": protocol}


def protocol(**changed: Any) -> dict[str, Any]:
    return {"protocol": Conditions.of_spec({}).as_dict() | {"n_fake": 8, "metrics": []} | changed}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cut=st.integers(0, 200), count=st.integers(1, 4))
def test_file_cut_anywhere_keeps_its_complete_lines(tmp_path_factory, cut: int, count: int) -> None:
    """Adding the same evaluations again completes a file that a kill cut short, and repeats nothing."""
    run = tmp_path_factory.mktemp("run")
    lines = [line(step, fd=ROW) for step in range(1, count + 1)]
    for one in lines:
        add_evaluation(run, one, protocol())
    file = run / "evaluations.jsonl"
    full = file.read_bytes()
    file.write_bytes(full[: max(0, len(full) - cut)])
    for one in lines:
        add_evaluation(run, one, protocol())
    assert file.read_bytes() == full and read_evaluations(run) == lines


def recorded(run: Path, *events: dict[str, Any]) -> Record:
    with RecordWriter(run) as record:
        record.write_spec("seed = 0\n[eval]\nguidance = 1.0\nsamples = 8\n")
        about = {"evaluation": {"hash": "p", **protocol()}}
        record.begin({"threads": 1, **about}, after_step=0)
        record.append(*events)
    return Record(run)


def event(step: int, seconds: float, **metrics: dict[str, Any]) -> dict[str, Any]:
    return line(step, **metrics) | {"flops": 100 * step, "seconds": {"student": seconds}}


def test_metrics_under_the_same_conditions_are_one_event(tmp_path: Path) -> None:
    recorded(tmp_path, event(4, 1.0, fd=ROW))
    add_evaluation(tmp_path, line(4, "s", recall=ROW), protocol(metrics=["recall"]))
    (found,) = Record(tmp_path).of("eval")
    assert found["metrics"] == {"fd": ROW, "recall": ROW} and found["seconds"] == {"student": 1.0}
    assert found["protocol"] == "p" and found["protocols"] == {"recall": "s"}


def test_value_with_more_replicates_counts(tmp_path: Path) -> None:
    recorded(tmp_path, event(4, 1.0, fd=ROW))
    repeated = ROW | {"mean": 3.0, "replicates": [2.0, 4.0]}
    add_evaluation(tmp_path, line(4, fd=repeated), protocol())
    add_evaluation(tmp_path, line(4, fd=ROW | {"mean": 9.0}), protocol())
    assert Record(tmp_path).of("eval")[0]["metrics"]["fd"] == repeated


def test_other_conditions_are_another_view(tmp_path: Path) -> None:
    recorded(tmp_path, event(4, 1.0, fd=ROW))
    add_evaluation(tmp_path, line(4, "g", fd=ROW | {"mean": 7.0}), protocol(guidance=1.5))
    record = Record(tmp_path)
    assert record.of("eval")[0]["metrics"]["fd"]["mean"] == 2.0
    own, guided = record.views
    assert record.under(guided).of("eval")[0]["metrics"]["fd"]["mean"] == 7.0
    assert varied([own, guided]) == ["guidance"] and record.shown_conditions == own


def test_costs_of_a_later_step_lie_between_those_of_its_neighbours(tmp_path: Path) -> None:
    recorded(tmp_path, event(4, 1.0, fd=ROW), event(8, 3.0, fd=ROW))
    add_evaluation(tmp_path, line(5, fd=ROW), protocol())
    (found,) = (e for e in Record(tmp_path).of("eval") if e["step"] == 5)
    assert found["flops"] == 500 and found["seconds"] == {"student": pytest.approx(1.5)}


def test_interval_of_guidance_is_no_condition_without_guidance() -> None:
    assert Conditions.of_spec({"guidance_low": 0.3}) == Conditions.of_spec({})
    assert Conditions.of_spec({"guidance": 2.0, "guidance_low": 0.3}) != Conditions.of_spec({"guidance": 2.0})


def test_every_field_of_a_protocol_is_a_condition() -> None:
    """A field that is added to `eval` must become a condition, or be named as none."""
    conditions = {field for field in Conditions.__dataclass_fields__} | {"metrics"}
    assert set(EvalSpec.model_fields) - NOT_PROTOCOL <= conditions


def test_protocols_of_later_evaluations_are_stored_once(tmp_path: Path) -> None:
    for step in (4, 8):
        add_evaluation(tmp_path, line(step, fd=ROW), protocol())
    assert json.loads((tmp_path / "protocols.json").read_text()) == {"p": protocol()}
