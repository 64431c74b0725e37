"""The early end of a run: a run that has crossed its targets for good is the beginning of the longer run."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.assembly.resolve import load_spec
from harness.errors import UserError
from harness.records.early_end import EndRule, crossed_for_good, end_words, parse_end_rule
from harness.records.record import Record
from harness.records.record_writer import RecordWriter
from harness.train.early_end import EndWatch, check_rule
from harness.train.extension import ends_by
from harness.train.loop import train
from harness.train.progress import Quiet
from harness.train.state import Run, checkpoint_writer
from reports.stats.curves import costs_of
from tests.support.forked import die, in_child, in_world
from tests.support.runs import events, everything, tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")
SPEC = tiny("eval.every=2")
RULE = EndRule((("fd:local", 1e6),), patience=3)
"""A target above every value: the third evaluation, at step 6, ends a run. No checkpoint is due there."""


@pytest.fixture(scope="module")
def full(quick_networks: None, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Return a run without a rule."""
    return trained(SPEC, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def ended(quick_networks: None, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Return the same run with the rule."""
    return Record(train(SPEC, tmp_path_factory.mktemp("ended"), Quiet(), rule=RULE))


def copied(record: Record, folder: Path) -> Record:
    return Record(Path(shutil.copytree(record.path, folder / record.path.name)))


def test_end_is_the_first_evaluation_with_which_enough_in_a_row_are_below() -> None:
    """Compared with the definition, on random values."""
    rng = np.random.default_rng(18)
    for _ in range(300):
        values, patience, margin = rng.random(9).tolist(), int(rng.integers(1, 4)), float(rng.random() / 2)
        below = [value <= 0.6 * (1 - margin) for value in values]
        ends = [k for k in range(patience - 1, 9) if all(below[k - patience + 1 : k + 1])]
        assert crossed_for_good(values, 0.6, patience, margin) == (ends[0] if ends else None)
    assert crossed_for_good([0.1, float("nan"), 0.1], 0.6, 2) is None


def test_run_of_several_targets_ends_with_the_last_of_them() -> None:
    rule = EndRule((("fid", 5.0), ("kid", 2.0)), patience=1)
    fid = [(0, 1.0), (10, 4.0), (20, 4.0)]
    assert rule.end({"fid": fid, "kid": [(10, 3.0), (20, 1.0)]}) == 20
    assert rule.end({"fid": fid, "kid": [(10, 3.0)]}) is None
    assert rule.end({"fid": fid}) is None


def test_shortfall_of_a_success_ends_a_run_once_the_success_is_high_enough() -> None:
    """The watch of a run in training and the rule on its record agree; 10 of 10 is a shortfall of 0.05."""
    rule = EndRule((("1-success@open-and-place", 0.2),), patience=2)
    shares = [0.1, 0.8, 0.7, 0.9, 1.0]
    rows = [{"success@open-and-place": {"mean": p, "low": 0.0, "high": 1.0, "n": 10}} for p in shares]
    watch = EndWatch.after(rule, ({"step": 0, "metrics": row} for row in rows[:1]))
    assert watch is not None and watch.end is None
    for step, row in enumerate(rows[1:], start=1):
        watch.add(step, row)
        assert watch.end == (4 if step == 4 else None)
    assert rule.end_of({"step": step, "metrics": row} for step, row in enumerate(rows)) == 4
    assert watch.values["1-success@open-and-place"][-1] == (4, 0.05)
    check_rule(rule, load_spec("open-and-place"))
    with pytest.raises(UserError, match=r"rises as it improves; .*'1-success@pusht<=0.2'"):
        parse_end_rule(["success@pusht<=0.8"], 3, 0.0)


def test_options_of_a_rule_give_it_back() -> None:
    rule = EndRule((("fd:local?n=500", 8.123456789012345), ("kid", 0.1)), 4, 0.05)
    words = end_words(rule)
    assert parse_end_rule([words[1], words[3]], int(words[5]), float(words[7])) == rule
    assert end_words(None) == () and parse_end_rule([], 3, 0.0) is None
    for text in ("fid", "fid<=x", "<=3", "fid<=-1", "fid<=inf"):
        with pytest.raises(UserError, match="expected METRIC<=VALUE"):
            parse_end_rule([text], 3, 0.0)


def test_early_end_is_the_beginning_of_the_full_run(full: Record, ended: Record) -> None:
    assert ended.id == full.id and ended.status == "done" and ended.last_step == 6
    assert events(ended) == [event for event in events(full) if event["step"] <= 6]
    end = ended.early_end
    assert (
        end is not None and str(end) == "ended at step 6 of 12: fd:local <= 1000000 in 3 evaluations in a row"
    )
    assert full.early_end is None


def test_budget_of_an_early_end_is_that_of_all_its_steps(full: Record, ended: Record) -> None:
    given, spent = costs_of(full), costs_of(ended)
    for axis in ("steps", "images", "flops"):
        assert spent.budget(axis) == given.budget(axis) == 2 * spent.totals[axis][-1]
    # Seconds of steps that were not trained are unknown.
    assert given.knows("seconds") and not spent.knows("seconds")


def test_run_that_does_not_cross_goes_to_its_last_step(full: Record, tmp_path: Path) -> None:
    rule = EndRule((("fd:local", 1e-3),), patience=1)
    found = Record(train(SPEC, tmp_path, Quiet(), rule=rule))
    assert found.early_end is None and everything(found) == everything(full)


def test_rule_that_holds_at_the_last_step_is_no_early_end(full: Record, tmp_path: Path) -> None:
    rule = EndRule((("fd:local", 1e6),), patience=6)
    found = Record(train(SPEC, tmp_path, Quiet(), rule=rule))
    assert found.early_end is None and everything(found) == everything(full)


@pytest.mark.parametrize("decay", ["none", pytest.param("cosine", marks=pytest.mark.slow)])
def test_run_that_ended_early_continues_with_the_same_bits(
    full: Record, ended: Record, tmp_path: Path, decay: str
) -> None:
    """Also one whose learning rate decays to the last step, which cannot be extended beyond it."""
    if decay == "none":
        whole, short, spec = full, copied(ended, tmp_path / "short"), SPEC
    else:
        spec = tiny("eval.every=2", f"train.decay={decay}")
        whole = trained(spec, tmp_path / "whole")
        short = Record(train(spec, tmp_path / "short", Quiet(), rule=RULE))
    assert short.early_end is not None
    longer = trained(spec, short.path.parent)
    assert longer.path == short.path and longer.early_end is None
    assert everything(longer) == everything(whole)


def test_same_rule_starts_nothing_and_another_one_continues(ended: Record, tmp_path: Path) -> None:
    own = copied(ended, tmp_path)
    before = (own.path / "done").read_bytes()
    train(SPEC, tmp_path, Quiet(), rule=RULE)
    assert (own.path / "done").read_bytes() == before and len(Record(own.path).environment) == 1
    train(SPEC, tmp_path, Quiet(), rule=EndRule(RULE.targets, patience=4))
    assert Record(own.path).last_step == 8
    longer = tiny("eval.every=2", "train.steps=20")
    end = Record(train(longer, tmp_path, Quiet(), rule=RULE)).early_end
    assert end is not None and (end.step, end.steps) == (6, 20)


def test_values_under_other_conditions_do_not_end_a_run(ended: Record, tmp_path: Path) -> None:
    """Evaluations at steps 2 and 4 are those of another sampler, so the third in a row is at step 10."""
    trained(tiny("eval.every=2", "train.steps=4", "eval.sampler=euler"), tmp_path)
    changed = tiny("eval.every=2", "eval.sampler=heun")
    found = Record(train(changed, tmp_path, Quiet(), rule=RULE))
    protocols = [event["protocol"] for event in found.events if event["kind"] == "eval"]
    assert found.id == ended.id and len(set(protocols)) == 2
    assert found.early_end is not None and found.early_end.step == 10
    assert ends_by(found, RULE) and not ends_by(found, EndRule(RULE.targets, patience=4))


@pytest.mark.parametrize("instant", ["done", "checkpoint"])
def test_run_killed_at_its_early_end_ends_with_the_same_bits(
    ended: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: str
) -> None:

    def writer(run: Run, folder: Path, *, writes: bool) -> Callable[[], None]:
        return die if run.step == 6 else checkpoint_writer(run, folder, writes=writes)

    with monkeypatch.context() as patch:
        if instant == "done":
            patch.setattr(RecordWriter, "finish", lambda *_: die())
        else:
            patch.setattr("harness.train.journal.checkpoint_writer", writer)
        assert in_child(lambda: train(SPEC, tmp_path, Quiet(), rule=RULE)) == -9
    assert Record(tmp_path / ended.id).status == "stopped"
    found = Record(train(SPEC, tmp_path, Quiet(), rule=RULE))
    assert found.early_end == ended.early_end and everything(found) == everything(ended)


@pytest.mark.slow
def test_run_killed_anywhere_ends_at_the_same_step(ended: Record, tmp_path: Path) -> None:
    dice = random.Random(18)
    for _ in range(12):
        in_child(lambda: train(SPEC, tmp_path, Quiet(), rule=RULE), kill_after=dice.uniform(0.05, 1.5))
    found = Record(train(SPEC, tmp_path, Quiet(), rule=RULE))
    assert found.early_end == ended.early_end and everything(found) == everything(ended)


@pytest.mark.slow
def test_ranks_end_together(ended: Record, tmp_path: Path) -> None:
    def work() -> None:
        train(SPEC, tmp_path, Quiet(), rule=RULE)

    in_world(2, work)
    found = Record(tmp_path / ended.id)
    assert found.early_end == ended.early_end and found.last_step == 6


def test_rule_on_a_metric_that_is_not_evaluated_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown metric of an early end 'fid'"):
        train(SPEC, tmp_path, Quiet(), rule=EndRule((("fid", 3.0),)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"step": 12}, {"reason": 3}, {"flops": "x"}, {"images": -1}, {"step": None}]
)
def test_malformed_early_end_is_one_sentence(
    ended: Record, tmp_path: Path, change: dict[str, object]
) -> None:
    own = copied(ended, tmp_path)
    done = json.loads((own.path / "done").read_text())
    done["ended"] |= change
    (own.path / "done").write_text(json.dumps(done))
    with pytest.raises(UserError, match="done: "):
        _ = Record(own.path).early_end
