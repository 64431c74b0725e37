"""`success@TASK`: the episodes of a rollout, with interval and stages, for runs that generate actions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.stats import binomtest

from harness.acting.network_actor import FIRST
from harness.assembly.resolve import load_spec
from harness.costs.estimate import evaluation_flops
from harness.environments.base import open_task
from harness.environments.demonstrations import write_demonstrations
from harness.environments.play import Expert
from harness.errors import UserError
from harness.evaluation import task_success
from harness.policy.finetune import finetune_spec
from harness.policy.policy import load_policy
from harness.records.record import Record
from harness.rollouts.rollout import policy_acting, roll_out
from harness.train.trained_run import evaluate_run
from tests.support.commands import flowrace
from tests.support.runs import trained

TASK = "open-and-place:open"
METRIC = f"success@{TASK}"
SMALL = (
    "backbone.size=1x16x1", "backbone.patch=16", "train.batch_size=4", "train.steps=2", "train.log_every=1",
    "train.warmup_steps=0", "train.checkpoint_every=1", "eval.every=1", "eval.samples=3",
    "eval.sampler_steps=1", "runtime.threads=1", "data.held_out=0.4", "data.frames=1", "ema.decay=0.1",
)  # fmt: skip


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("success") / "demos"
    write_demonstrations(open_task(TASK), 3, out)
    return out


@pytest.fixture(scope="module")
def run(demos: Path) -> Record:
    metrics = f'eval.metrics=["{METRIC}", "loss:held_out"]'
    spec = finetune_spec("demos", demos, TASK, from_scratch=True, overrides=(*SMALL, metrics))
    return trained(spec, demos.parent / "runs")


def test_success_is_that_of_a_rollout_of_the_same_weights(run: Record, tmp_path: Path) -> None:
    for event in run.of("eval"):
        row, step = event["metrics"][METRIC], event["step"]
        environments = open_task(TASK)
        acting = policy_acting(load_policy(run.path, step), "run", environments.task, 50)
        episodes = roll_out(environments, acting, 3, tmp_path / str(step)).episodes
        assert row["successes"] == "".join("01"[one.success] for one in episodes)
        assert [one.seed for one in episodes] == list(range(FIRST, FIRST + 3))
        wilson = binomtest(row["successes"].count("1"), 3).proportion_ci(method="wilson")
        assert (row["mean"], row["n"]) == (row["successes"].count("1") / 3, 3)
        assert (row["low"], row["high"]) == pytest.approx((wilson.low, wilson.high), abs=1e-9)


def test_expert_succeeds_at_every_start_and_stage(run: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_success, "NetworkActor", lambda *_: Expert())
    spec = load_spec(str(run.path), ('eval.metrics=["success@open-and-place"]',))
    _, result = evaluate_run(run.path, spec)
    stages = [f"success@open-and-place/{stage}" for stage in ("opened", "placed", "both")]
    assert list(result.metrics) == ["success@open-and-place", *stages]
    assert {metric.successes for metric in result.metrics.values()} == {"111"}


def test_finished_run_is_measured_later_under_the_task_and_its_version(run: Record) -> None:
    done = flowrace("eval", run.path, "--metrics", "success@open-and-place", "--steps", "last", "--json")
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["evaluations"]
    assert found["metrics"]["success@open-and-place"]["n"] == 3
    record = Record(run.path)
    (later,) = [one for one in record.evaluations if "success@open-and-place" in one.metrics]
    about = record.protocols[later.protocol]["protocol"]["truths"]["success@open-and-place"]
    assert about["task"] == "open-and-place" and about["first"] == FIRST and about["version"]


def test_plan_counts_the_passes_of_episodes_that_never_succeed(demos: Path) -> None:
    found = {}
    for metrics in (f'["{METRIC}"]', "[]"):
        words = (*SMALL, f"eval.metrics={metrics}", "eval.samples=51", "eval.sampler=heun", "eval.grid=1")
        spec = finetune_spec("demos", demos, TASK, from_scratch=True, overrides=words)
        found[metrics] = evaluation_flops(spec)
    # One sample of the grid in each evaluation, against two batches of 50 that plan 9 times in 50 steps.
    plain = found["[]"]
    assert found[f'["{METRIC}"]'] == plain + 9 * 100 * plain


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (('eval.metrics=["success@open-and-plac"]',), "Did you mean 'open-and-place'"),
        ((f'eval.metrics=["{METRIC}"]', "eval.sampler=euler_maruyama"), "--set eval.sampler=euler"),
        (
            (f'eval.metrics=["{METRIC}"]', "data.parts.action.weight=0", "data.parts.state.weight=0"),
            "needs a run that generates actions, but this one generates videos",
        ),
    ],
)
def test_success_that_cannot_be_measured_is_rejected(words: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        load_spec("demos", words)


def test_task_with_other_actions_is_rejected(run: Record) -> None:
    spec = load_spec(str(run.path), ('eval.metrics=["success@pusht"]',))
    with pytest.raises(UserError, match=r"takes 2 \(x, y\)|pip install"):
        evaluate_run(run.path, spec)
