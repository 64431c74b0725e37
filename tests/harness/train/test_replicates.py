"""Replicates at both ends of a crossing: steps, values, and how readers merge them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from harness.cli.main import cli
from harness.data.open import open_dataset, split
from harness.errors import UserError
from harness.evaluation.evaluator import Evaluator
from harness.records.record import Record
from harness.records.record_writer import RecordWriter
from harness.train.replicates import Wanted, bracket_steps, replicate_run
from harness.train.trained_run import load_ema
from reports.stats.curves import curve_of
from tests.support.runs import tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")


def curve(folder: Path, values: dict[int, float], metric: str = "fd:local") -> Record:
    with RecordWriter(folder) as record:
        record.write_spec("seed = 0\n")
        record.begin({"threads": 1}, after_step=0)
        for step, value in values.items():
            row = {"mean": value, "low": None, "high": None, "n": 9}
            metrics = {metric: row}
            record.append({"kind": "eval", "step": step, "images": 0, "metrics": metrics, "protocol": "p"})
    return Record(folder)


def test_target_of_success_is_found_under_its_recorded_name(tmp_path: Path) -> None:
    curve(tmp_path / "a", {10: 0.1, 20: 0.2}, "success@pusht")
    words = ["replicate", str(tmp_path), "--metric", "success@pusht", "--target"]
    found = CliRunner().invoke(cli, [*words, "0.5", "--json"])
    assert (found.exit_code, json.loads(found.output)) == (0, [])


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({10: 9.0, 20: 7.0, 30: 5.0, 40: 4.0}, [20, 30]),
        # A first and a sustained crossing.
        ({10: 9.0, 20: 5.0, 30: 7.0, 40: 4.0}, [10, 20, 30, 40]),
        # A value at the target is not below it.
        ({10: 9.0, 20: 6.0, 30: 4.0}, [20, 30]),
        ({10: 9.0, 20: 8.0}, []),
        ({10: 1.0}, []),
    ],
)
def test_bracket_steps_are_the_ends_of_every_crossing(
    values: dict[int, float], steps: list[int], tmp_path: Path
) -> None:
    found = bracket_steps(
        curve(tmp_path / "a", values), Wanted("fd:local", 5.5 if 6.0 in values.values() else 6.0)
    )
    assert found == steps


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Record:
    spec = tiny("train.checkpoint_every=6", "train.keep_checkpoints=9")
    return trained(spec, tmp_path_factory.mktemp("runs"))


def test_replicates_are_measured_once_and_merged_by_readers(run: Record) -> None:
    before = [event["metrics"]["fd:local"]["mean"] for event in run.of("eval")]
    target = sum(before) / 2
    command = ["replicate", str(run.path), "--metric", "fd:local", "--target", str(target), "--json"]
    measured = json.loads(CliRunner().invoke(cli, command, catch_exceptions=False).stdout)
    assert [row["step"] for row in measured] == [6, 12]
    again = json.loads(CliRunner().invoke(cli, command, catch_exceptions=False).stdout)
    assert again == []
    merged = Record(run.path).of("eval")
    for new, event, single in zip(measured, merged, before, strict=True):
        row = new["metrics"]["fd:local"]
        assert event["metrics"]["fd:local"] == row and row["replicates"][0] == single
        low, high = stats.t.interval(0.95, 2, row["mean"], stats.sem(row["replicates"]))
        assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert Record(run.path).events == run.events
    assert list(curve_of(Record(run.path), "fd:local").measured) == [
        e["metrics"]["fd:local"]["mean"] for e in merged
    ]


def test_replicates_equal_those_of_the_evaluator(run: Record) -> None:
    """An evaluator with the same settings gives the same three replicates of step 12."""
    spec = tiny("eval.replicates=3")
    dataset = open_dataset(spec.data)
    sides = split(dataset, spec.data.held_out)
    file = run.path / "checkpoints" / "step-00000012.safetensors"
    model = load_ema(file, spec, dataset, torch.device("cpu"))
    result = Evaluator(spec.eval, dataset, sides.train, torch.device("cpu"))(model)
    (event,) = (event for event in Record(run.path).of("eval") if event["step"] == 12)
    assert event["metrics"] == result.rows


def test_replicate_is_rejected_when_checkpoint_or_target_is_missing(tmp_path: Path) -> None:
    record = curve(tmp_path / "a", {10: 9.0, 20: 5.0})
    for words, message in (
        (
            ["--metric", "fd:local", "--target", "6"],
            r"nothing could be evaluated again: .*has no weights of step 10 \(kept: none\)",
        ),
        ([], "belongs to no study with a target; give --metric and --target"),
    ):
        result = CliRunner().invoke(cli, ["replicate", str(record.path), *words])
        assert isinstance(result.exception, UserError)
        with pytest.raises(UserError, match=message):
            raise result.exception


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "zzz", "--target", "6"], r"unknown metric 'zzz' \(known: fd:local\)"),
        (["--metric", "fd:local", "--target", "nan"], "target nan: expected a number above 0"),
        (["--metric", "fd:local", "--target", "-1"], "target -1: expected a number above 0"),
    ],
)
def test_replicate_rejects_unknown_metrics_and_invalid_targets(
    words: list[str], message: str, tmp_path: Path
) -> None:
    record = curve(tmp_path / "a", {10: 9.0, 20: 5.0})
    result = CliRunner().invoke(cli, ["replicate", str(record.path), *words])
    assert isinstance(result.exception, UserError) and re.match(message, str(result.exception))


def test_replicate_is_rejected_when_no_run_has_been_evaluated(tmp_path: Path) -> None:
    record = curve(tmp_path / "a", {})
    result = CliRunner().invoke(cli, ["replicate", str(record.path), "--metric", "fd:local", "--target", "6"])
    assert isinstance(result.exception, UserError) and "no run has been evaluated" in str(result.exception)


def test_step_measured_by_a_concurrent_command_is_not_repeated(run: Record, tmp_path: Path) -> None:
    record = Record(shutil.copytree(run.path, tmp_path / run.id))
    ours, theirs = replicate_run(record, [6], 4), replicate_run(Record(record.path), [6], 4)
    assert [step for step, _ in theirs] == [6] and [step for step, _ in ours] == []


def test_replicates_of_another_protocol_are_ignored(tmp_path: Path) -> None:
    record = curve(tmp_path / "a", {10: 9.0})
    other = {"10": {"protocol": "q", "metrics": {"fd:local": {"mean": 1.0}}}}
    (record.path / "replicates.json").write_text(json.dumps(other))
    assert Record(record.path).of("eval") == record.events
