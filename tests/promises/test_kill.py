"""Promise 4: a run killed at any instant and started again ends with the bits of a run that was never
killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.records import checkpoint, checkpoint_files
from harness.records.record import Record
from harness.records.record_writer import RecordWriter
from harness.train.loop import train
from harness.train.progress import Quiet
from harness.train.signals import StoppedBySignal
from tests.support.forked import command_in_child, die, exit_code, has_ended, in_child
from tests.support.runs import TINY, events, everything, tiny, trained, weights
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("quick_networks")

SPEC = (
    "method.name=self_flow", "train.steps=20", "train.checkpoint_every=3",
    "eval.every=5", "eval.samples=8", "eval.sampler_steps=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> str:
    return everything(trained(tiny(*SPEC), tmp_path_factory.mktemp("unbroken")))


@pytest.fixture(scope="module")
def duration(unbroken: str, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds of a run in a process that has its modules and caches already."""
    out = tmp_path_factory.mktemp("timed")
    begun = time.monotonic()
    assert in_child(lambda: trained(tiny(*SPEC), out)) == 0
    return time.monotonic() - begun


@pytest.mark.slow
@pytest.mark.parametrize("runs", [10])
def test_run_killed_at_random_moments_ends_with_the_same_bits(
    runs: int, tmp_path: Path, unbroken: str, duration: float
) -> None:
    """Each run is killed once, at a moment drawn uniformly from its duration, and then continued."""
    spec, dice = tiny(*SPEC), random.Random(20261121 + runs)
    moments = [dice.uniform(0, duration) for _ in range(runs)]
    for number, moment in enumerate(moments):
        ended = in_child(lambda out=tmp_path / str(number): trained(spec, out), kill_after=moment)
        assert ended in (-signal.SIGKILL, 0)
        assert everything(trained(spec, tmp_path / str(number))) == unbroken, f"killed after {moment:.3f} s"


@pytest.mark.slow
def test_run_killed_again_and_again_ends_with_the_same_bits(
    tmp_path: Path, unbroken: str, duration: float
) -> None:
    """One run, killed until it gets through."""
    spec, dice = tiny(*SPEC), random.Random(7)
    for _ in range(12):
        in_child(lambda: trained(spec, tmp_path), kill_after=dice.uniform(0.2, 0.8) * duration)
    assert everything(trained(spec, tmp_path)) == unbroken


@pytest.mark.parametrize("runs", [pytest.param(10, marks=pytest.mark.slow)])
def test_extension_killed_at_random_moments_ends_with_the_same_bits(
    runs: int, tmp_path: Path, unbroken: str, duration: float
) -> None:
    """A run of 8 steps ends at steps without a checkpoint or an evaluation of the longer run."""
    short, dice = trained(tiny(*SPEC, "train.steps=8"), tmp_path / "short"), random.Random(runs)
    for number in range(runs):
        out, moment = tmp_path / str(number), dice.uniform(0, 0.6 * duration)
        shutil.copytree(short.path.parent, out)
        in_child(lambda out=out: trained(tiny(*SPEC), out), kill_after=moment)
        extended = trained(tiny(*SPEC), out)
        (extended.path / "samples" / "step-00000008.png").unlink()
        (extended.path / "ema" / "step-00000008.safetensors").unlink()
        assert everything(extended) == unbroken, f"killed after {moment:.3f} s"


@pytest.mark.parametrize("runs", [pytest.param(10, marks=pytest.mark.slow)])
def test_later_evaluation_killed_at_random_moments_measures_nothing_twice(
    runs: int, tmp_path: Path, duration: float
) -> None:
    first, dice = trained(tiny(*SPEC), tmp_path / "first"), random.Random(runs)
    asked = tiny(*SPEC, "eval.guidance=2.0", 'eval.metrics=["fd:local","recall:local"]')

    def answers(record: Record) -> list[str]:
        return sorted((record.path / "evaluations.jsonl").read_text().splitlines())

    shutil.copytree(first.path.parent, tmp_path / "whole")
    whole = answers(trained(asked, tmp_path / "whole"))
    assert len(whole) == 4
    for number in range(runs):
        out, moment = tmp_path / str(number), dice.uniform(0, 0.4 * duration)
        shutil.copytree(first.path.parent, out)
        in_child(lambda out=out: trained(asked, out), kill_after=moment)
        again = trained(asked, out)
        assert answers(again) == whole, f"killed after {moment:.3f} s"
        assert events(again) == events(first) and weights(again) == weights(first)


def in_a_step(calls: int) -> None:
    import torch

    step = torch.optim.AdamW.step
    _die_in(torch.optim.AdamW, "step", calls, lambda *a, **k: step(*a, **k))


def in_an_evaluation(calls: int) -> None:
    from harness.evaluation import evaluator as evaluate

    _die_in(evaluate, "picture", calls, evaluate.picture)


def halfway_through_a_checkpoint(calls: int) -> None:
    whole = checkpoint.save_file

    def half(tensors, path, metadata) -> None:
        whole(tensors, path, metadata=metadata)
        os.truncate(path, path.stat().st_size // 2)

    _die_in(checkpoint, "save_file", calls, whole, instead=half)


def before_a_rename(calls: int) -> None:
    _die_in(os, "replace", calls, os.replace)


def after_a_rename(calls: int) -> None:
    rename = os.replace
    _die_in(os, "replace", calls, rename, instead=rename)


def before_old_checkpoints_are_pruned(calls: int) -> None:
    _die_in(checkpoint_files, "prune", calls, checkpoint_files.prune)


def halfway_through_a_line(calls: int) -> None:
    append = RecordWriter.append

    def half(self: RecordWriter, *events: dict) -> None:
        self._events.write(b'{"kind":"train","st')

    _die_in(RecordWriter, "append", calls, append, instead=half)


def _die_in(owner, name: str, calls: int, whole: Callable, instead: Callable | None = None) -> None:
    """Let the given number of calls pass, then do `instead` of the next one and die."""
    left = [calls]

    def counted(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            if instead is not None:
                instead(*args, **kwargs)
            die()
        return whole(*args, **kwargs)

    setattr(owner, name, counted)


@pytest.mark.parametrize(
    ("where", "calls"),
    [
        (in_a_step, 13),
        (in_an_evaluation, 1),
        (halfway_through_a_checkpoint, 3),
        (before_a_rename, 9),
        (after_a_rename, 10),
        pytest.param(after_a_rename, 7, marks=pytest.mark.slow),
        (before_old_checkpoints_are_pruned, 6),
        (halfway_through_a_line, 0),
        pytest.param(halfway_through_a_line, 17, marks=pytest.mark.slow),
        pytest.param(halfway_through_a_line, 9, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_run_killed_at_the_worst_moments_ends_with_the_same_bits(
    tmp_path: Path, unbroken: str, where: Callable, calls: int
) -> None:
    spec = tiny(*SPEC)

    def dying() -> None:
        where(calls)
        trained(spec, tmp_path)

    assert in_child(dying) == -signal.SIGKILL
    assert everything(trained(spec, tmp_path)) == unbroken


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 0), (signal.SIGTERM, 2)])
def test_stopped_run_continues_to_the_same_bits(
    tmp_path: Path, unbroken: str, number: int, workers: int
) -> None:
    """SIGINT to all its processes, as from Ctrl-C, or SIGTERM, as from an engine: a checkpoint after the
    current step, exit code 130, and the same command continues."""
    words = [word for override in (*TINY, *SPEC, f"data.workers={workers}") for word in ("--set", override)]
    command = ["run", "digits", *words, "--out", str(tmp_path), "--no-track"]
    run = command_in_child(command, tmp_path / "output")
    record = Record(tmp_path / tiny(*SPEC).id)
    first = record.path / "checkpoints" / "step-00000003.safetensors"
    wait_until(lambda: first.exists() or has_ended(run))
    os.killpg(run, number)
    code, said = exit_code(run), (tmp_path / "output").read_text()
    assert code == 130 and "the same command continues" in said and "Traceback" not in said
    assert record.status == "stopped"
    assert everything(trained(tiny(*SPEC), tmp_path)) == unbroken


def test_stop_costs_no_scheduled_checkpoint(tmp_path: Path) -> None:
    """Stopped three times between scheduled checkpoints, a run keeps those that it would have kept."""
    spec = tiny("train.steps=20", "eval.every=20", "train.checkpoint_every=5", "train.keep_checkpoints=3")
    calm = trained(spec, tmp_path / "calm")

    def files(run: Path) -> list[int]:
        return sorted(checkpoint_files.step_of(file) for file in (run / "checkpoints").iterdir())

    assert files(calm.path) == [10, 15, 20]
    wild, kept = tmp_path / "wild", []
    for step in (7, 12, 14, 17):
        with pytest.raises(StoppedBySignal, match=f"stopped at step {step} "):
            train(spec, wild, StopsAt(step))
        kept.append(files(wild / spec.id))
    assert kept == [[5, 7], [5, 10, 12], [5, 10, 14], [5, 10, 15, 17]]
    assert everything(trained(spec, wild)) == everything(calm)


class StopsAt(Quiet):
    """Sends SIGTERM to the process so that it stops after step `at`."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, step: int, loss: float) -> None:
        # The loop notices it after the next step.
        if step == self.at - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_clock_resumes_after_a_kill(tmp_path: Path) -> None:
    """Seconds by phase never fall over a kill, and what was booked before it is not lost."""
    spec = tiny(*SPEC)

    def dying() -> None:
        in_a_step(13)
        trained(spec, tmp_path)

    in_child(dying)
    before = Record(tmp_path / spec.id).seconds_at(12)
    record = trained(spec, tmp_path)
    students = [event["seconds"].get("student", 0.0) for event in record.of("train")]
    assert students == sorted(students)
    assert record.of("train")[12]["seconds"]["student"] >= before["student"] > 0
    assert record.seconds_at(20)["checkpoint"] > before["checkpoint"] > 0
