"""Several scales of guidance in one run. The authority is a run with one scale that is measured later."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.backbone.network import Prediction
from harness.config.evaluation_spec import EvalSpec
from harness.data.open import open_dataset, split
from harness.errors import UserError
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.held_out_loss import HeldOutLoss
from harness.flow import sampling
from harness.records.record import Record
from harness.records.shapes import spec_fault
from harness.train.evaluation_questions import Question
from harness.train.loop import train
from harness.train.progress import Silent
from harness.train.trained_run import evaluate_run, spec_of_run
from sweeps.plan.plan import PlannedRun
from sweeps.plan.run_state import read_state
from tests.support.forked import in_child
from tests.support.runs import TINY, everything, tiny, torchrun, trained

pytestmark = pytest.mark.usefixtures("quick_networks")

METRICS = 'eval.metrics=["fd:local","loss:held_out"]'
BOTH = (METRICS, "eval.guidance=[1.0, 2.0]")


class Stop(Exception):
    """The death of a process."""


class DiesAfterAnEvaluation(Silent):
    """A display that ends the run between the evaluations of one step."""

    def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
        raise Stop


def lines(record: Record) -> list[str]:
    return (record.path / "evaluations.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, quick_networks: None) -> Record:
    return trained(tiny(*BOTH), tmp_path_factory.mktemp("together"))


def test_further_scales_have_the_records_of_later_evaluations(together: Record, tmp_path: Path) -> None:
    alone = trained(tiny(METRICS), tmp_path)
    before = everything(alone)
    later = trained(tiny(*BOTH), tmp_path)
    assert alone.id == together.id and len(lines(together)) == 2
    assert lines(together) == lines(later) and everything(together) == everything(later) != before
    for name in ("protocols.json", "spec.toml"):
        assert (together.path / name).read_bytes() == (later.path / name).read_bytes()
    assert [conditions.guidance for conditions in Record(together.path).views] == [1.0, 2.0]
    assert Record(together.path).shown_conditions.guidance == 1.0


def test_run_that_ends_between_the_scales_resumes_to_the_same_record(
    together: Record, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        train(tiny(*BOTH), tmp_path, DiesAfterAnEvaluation())
    resumed = trained(tiny(*BOTH), tmp_path)
    assert lines(resumed) == lines(together) and everything(resumed) == everything(together)


def test_finished_run_measures_nothing_again(together: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluates(*_: object) -> None:
        raise AssertionError("an evaluation")

    before = lines(together)
    monkeypatch.setattr(Evaluator, "__init__", evaluates)
    trained(tiny(*BOTH), together.path.parent)
    assert lines(together) == before


@pytest.mark.slow
def test_weights_that_are_kept_rounded_are_not_measured_again(tmp_path: Path) -> None:
    record = trained(tiny(*BOTH, "train.keep_precision=bfloat16"), tmp_path)
    assert [(view.guidance, view.ema) for view in record.views] == [(1.0, "float32"), (2.0, "float32")]
    assert len(lines(record)) == 2


@pytest.mark.slow
def test_weights_need_not_be_kept(tmp_path: Path) -> None:
    record = trained(tiny(*BOTH, "train.keep_checkpoints=1", "eval.every=3"), tmp_path)
    assert [line.partition('"step":')[2].partition(",")[0] for line in lines(record)] == ["3", "6", "9", "12"]


def test_networks_and_validation_loss_are_shared_and_scale_one_has_no_second_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guidance at all times doubles the samples that pass the network; both scales have the same noise."""
    spec = tiny(*BOTH)
    dataset = open_dataset(spec.data)
    sides = split(dataset, spec.data.held_out)
    evaluator = Evaluator(spec.eval, dataset, sides.train, torch.device("cpu"), sides.held_out)
    losses, fields = [], []
    loss, field = HeldOutLoss.__call__, sampling.velocity_field

    def counted(self: HeldOutLoss, model: torch.nn.Module) -> dict[str, Any]:
        losses.append(self)
        return loss(self, model)

    def seen(*words: Any, **named: Any) -> Any:
        v = field(*words, **named)
        fields.append([named["scale"]])
        return lambda x, t: fields[-1].append(x) or v(x, t)

    monkeypatch.setattr(HeldOutLoss, "__call__", counted)
    monkeypatch.setattr(sampling, "velocity_field", seen)
    network = Passes()
    found = [(under.spec.scale, result, network.taken()) for under, result in evaluator.each(network)]
    assert [scale for scale, *_ in found] == [1.0, 2.0] and len(losses) == 1
    first, second = (passes for *_, passes in found)
    shown = [result.rows["loss:held_out"] for _, result, _ in found if result is not None]
    # Eight times of each held-out sample are the first one's, then Heun's 3 passes of each sample.
    samples, held_out = spec.eval.samples, min(len(sides.held_out), spec.eval.samples)
    assert (first, second) == (8 * held_out + 3 * samples, 2 * 3 * samples)
    assert torch.equal(fields[0][1], fields[1][1])
    assert len(shown) == 2 and shown[0] == shown[1]


class Passes(torch.nn.Module):
    """A network that counts the samples that pass it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def taken(self) -> int:
        count, self.count = self.count, 0
        return count

    def forward(self, x: torch.Tensor, times: object, y: torch.Tensor) -> Any:
        self.count += len(x)
        return Prediction(0.8 * x + (y.view(-1, 1, 1, 1) - 5) * 0.05, {})


@pytest.mark.parametrize(
    "scales", ["[1.0, 2.0]", "[1, 2]", "[2.0, 1.0]"], ids=["two", "whole numbers", "another order"]
)
def test_specs_differ_by_guidance_only(scales: str) -> None:
    several, one = tiny(f"eval.guidance={scales}"), tiny()
    assert several.id == one.id
    values = [float(scale) for scale in scales.strip("[]").split(",")]
    assert [spec.guidance for spec in several.eval.by_guidance] == values
    assert several.by_guidance[0] == tiny(f"eval.guidance={values[0]}")
    assert several.legacy_id == several.by_guidance[0].legacy_id


def test_list_of_one_scale_is_that_scale() -> None:
    assert tiny("eval.guidance=[1.5]") == tiny("eval.guidance=1.5")
    assert tiny("eval.guidance=[1.5]").eval == tiny().eval.model_copy(update={"guidance": 1.5})


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("[]", r"\[\]"), ("[1.0, 1]", r"\[1.0, 1\]"), ("[1.0, -2.0]", r"\[1.0, -2.0\]"), ("true", "true"),
        ("strong", '"strong"'), ('[1.0, "2"]', r'\[1.0, "2"\]'), ("[[1.0]]", r"\[\[1.0\]\]"),
        ("inf", "Infinity"), ("[1.0, nan]", r"\[1.0, NaN\]"),
    ],
)  # fmt: skip
def test_values_that_are_no_scales_are_named(value: str, shown: str) -> None:
    with pytest.raises(UserError, match=rf"eval\.guidance = {shown}: expected a number of at least 0, or"):
        tiny(f"eval.guidance={value}")
    with pytest.raises(UserError, match="does not fit float32"):
        tiny("eval.guidance=[1.0, 1e39]")


def test_first_scale_is_that_of_samples_and_protocols() -> None:
    several = EvalSpec(guidance=(2.0, 1.0))
    assert several.scale == 2.0 and EvalSpec(guidance=3.0).scale == 3.0


def test_another_scale_is_an_evaluation_of_the_same_run(together: Record) -> None:
    """The third scale is unmeasured at two steps."""
    for scales, expected in (("[1.0, 2.0]", ("done", 0)), ("[1.0, 2.0, 3.0]", ("to evaluate", 2))):
        run = PlannedRun({}, tiny(METRICS, f"eval.guidance={scales}"))
        state = read_state(run, together.path.parent)
        assert run.id == together.id and (state.status, state.unmeasured) == expected


def test_questions_without_guidance_are_about_each_scale_of_the_run(together: Record) -> None:
    question = Question(steps="all")
    assert question.missing(together.path) == 0
    found = [(row["step"], row["conditions"]["guidance"]) for row in question.answers(together.path)]
    assert found == [(6, 1.0), (12, 1.0), (6, 2.0), (12, 2.0)]
    assert Question(steps="all", guidance=(3.0,)).missing(together.path) == 4


@pytest.mark.parametrize("scales", [["x"], [], [1.0, [2.0]], "x"])
def test_record_with_other_scales_is_rejected(scales: object) -> None:
    assert spec_fault({"eval": {"guidance": [1.0, 2.0]}}) == ""
    assert spec_fault({"eval": {"guidance": scales}}) == "eval.guidance is no finite number"


@pytest.mark.slow
def test_run_killed_at_random_moments_has_the_same_lines(together: Record, tmp_path: Path) -> None:
    begun = time.monotonic()
    trained(tiny(*BOTH), tmp_path / "once")
    duration, dice = time.monotonic() - begun, random.Random(17)
    for _ in range(8):
        in_child(
            lambda: trained(tiny(*BOTH), tmp_path / "killed"), kill_after=dice.uniform(0.2, 0.9) * duration
        )
    again = trained(tiny(*BOTH), tmp_path / "killed")
    assert lines(again) == lines(together) and everything(again) == everything(together)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_record_what_one_measures_from_kept_weights(shard: bool, tmp_path: Path) -> None:
    result = torchrun("digits", (*TINY, *BOTH, *(["runtime.shard=true"] if shard else [])), tmp_path)
    assert result.returncode == 0, result.stderr
    record = Record(next(tmp_path.glob("*/spec.toml")).parent)
    spec = spec_of_run(record.path, ("eval.guidance=2.0", "runtime.shard=false"))
    again = {step: evaluate_run(record.path, spec, step)[1] for step in (6, 12)}
    recorded = {line["step"]: line for line in map(json.loads, lines(record))}
    assert {step: (line["metrics"], line["protocol"]) for step, line in recorded.items()} == {
        step: (one.rows, one.protocol) for step, one in again.items()
    }
