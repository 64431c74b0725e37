"""Promises 1, 2, 3, 4 and 7 by modality: video, sound, and both in one sequence.

The same promises on images: tests/methods/test_conformance.py (1, 2), tests/harness/flow/test_golden.py (3),
test_kill.py (4) and test_run_ids.py (7). What a sample of several parts has in addition:
tests/methods/test_parts.py.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.assembly.data_fields import MIRRORED
from harness.assembly.resolve import load_spec
from harness.backbone.sit import SiT
from harness.backbone.times import Times
from harness.config import registry
from harness.config.data_spec import DataSpec
from harness.data.feed import MicroBatches
from harness.data.generated.digits import Digits
from harness.flow.golden import read
from harness.records.record import DONE, Record
from harness.train.objective import Objective
from harness.train.state import Run
from tests.promises import test_kill as kill
from tests.support.conformance import drawn, same
from tests.support.conformance_runs import ALIKE
from tests.support.forked import in_child
from tests.support.modal import MODALITIES, REFUSED, SMALL, built, method_words, modal
from tests.support.runs import TINY, everything, losses, part, tiny, torchrun, trained

APART = "joint, times apart"
CASES = {**{name: (name,) for name in MODALITIES}, APART: ("joint", "time.apart=true")}
WITHOUT_ENCODER = [
    name for name in registry.METHODS if "encoder" not in registry.load("method", name).Config.model_fields
]


def few_fast(cases: Iterable[str]) -> list[Any]:
    """Return cases of which that of a video with its sound, which has both kinds, is in the fast suite."""
    return [case if case == "joint" else pytest.param(case, marks=pytest.mark.slow) for case in cases]


SPEC = ("method.name=self_flow", "train.steps=12", "eval.every=6", "eval.samples=8")


pytestmark = pytest.mark.usefixtures("quick_networks")


def steps(run: Run, count: int) -> list[torch.Tensor]:
    """The losses of a few steps of the optimizer."""
    objective, totals = Objective(run), []
    for number in range(count):
        batch = run.feed.batch(np.arange(8 * number, 8 * number + 8))
        total, _ = objective(batch, run.method.draw(run.streams, batch))
        total.backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        totals.append(total.detach())
    return totals


@pytest.mark.slow
@pytest.mark.parametrize("modality", MODALITIES)
def test_two_processes_equal_one(modality: str, tmp_path: Path) -> None:
    """Promise 1: the loss to 1e-6; what is drawn, bit for bit, is below."""
    words = (*SMALL, *MODALITIES[modality], "method.name=self_flow")
    one = trained(tiny(*words), tmp_path / "one")
    result = torchrun("digits", (*TINY, *words), tmp_path / "two")
    assert result.returncode == 0, result.stderr
    two = Record(tmp_path / "two" / one.id)
    assert two.environment[0]["devices"] == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_draws_do_not_depend_on_processes_or_cuts(case: str) -> None:
    """Promise 1: two processes with two micro-batches each see and draw, together, what one process does."""
    modality, *more = CASES[case]
    mirrored = ["data.flip=true"] * (modality in MIRRORED)
    run = built(modal(modality, "method.name=self_flow", *mirrored, *more))
    [whole] = run.feed.batches(MicroBatches(range(100, 101), 16), workers=0)
    parts = [b for rank in (0, 1) for b in run.feed.batches(MicroBatches(range(100, 101), 16, 2, rank, 2), 0)]
    draws = [drawn(run.method.draw(run.streams, batch)) for batch in parts]
    together = {name: torch.cat([draw[name] for draw in draws]) for name in draws[0]}
    assert same(drawn(run.method.draw(run.streams, whole)), together)
    for name in ("x0", "y", "label"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(batch, name) for batch in parts]))


@pytest.mark.parametrize("case", CASES)
def test_methods_share_samples_noise_and_base_times(case: str) -> None:
    """Promise 1: what flow draws for a sample, any other method with one time a token draws too."""
    modality, *more = CASES[case]
    flow, other = (built(modal(modality, f"method.name={name}", *more)) for name in ("flow", "self_flow"))
    batches = [run.feed.batch(np.arange(40, 48)) for run in (flow, other)]
    assert all(torch.equal(getattr(batches[0], name), getattr(batches[1], name)) for name in ("x0", "y"))
    one, two = (
        run.method.draw(run.streams, batch) for run, batch in zip((flow, other), batches, strict=True)
    )
    assert torch.equal(one.noise, two.noise)
    parts = one.times.levels.shape[1]
    assert parts == len(more) + 1 and torch.equal(one.times.levels, two.times.levels[:, :parts])


@pytest.mark.parametrize("case", few_fast(CASES))
def test_every_method_off_is_flow_bit_for_bit(case: str) -> None:
    """Promise 2, for each method that can run there: the same losses and weights after two steps."""
    modality, *more = CASES[case]
    flow = built(modal(modality, *more))
    expected = steps(flow, 2)
    raced = []
    for name in registry.METHODS:
        cls = registry.load("method", name)
        if (modality == "joint" and not cls.parts_apart) or (more and not cls.times_apart):
            continue
        off = [f"method.{field}={value}" for field, value in cls.Config.off.items()]
        run = built(modal(modality, f"method.name={name}", *off, *more))
        assert torch.equal(torch.stack(steps(run, 2)), torch.stack(expected)), name
        assert same(run.model.state_dict(), flow.model.state_dict()), name
        raced.append(name)
    assert {"flow", "repa", "self_flow", "layersync"} <= {*raced}


@pytest.mark.parametrize("modality", few_fast(MODALITIES))
def test_run_with_knobs_off_logs_and_evaluates_as_flow(modality: str, tmp_path: Path) -> None:
    """Promise 2, for a run from start to end: losses, final weights and evaluations."""
    flow = trained(modal(modality), tmp_path)
    off = trained(
        modal(modality, "method.name=self_flow", "method.gamma=0.0", "method.mask_ratio=0.0"), tmp_path
    )
    assert losses(off) == losses(flow) and part(off, "model") == part(flow, "model")
    assert [e["metrics"] for e in off.of("eval")] == [e["metrics"] for e in flow.of("eval")]


@pytest.mark.parametrize("name", ["sit_forward", "self_flow_step"])
def test_released_numbers_hold_for_a_video_of_one_frame(golden: Path, name: str) -> None:
    """Promise 3: with released weights, one frame has the velocity of the image bit for bit, and the authors'
    to 1e-5."""
    file = read(golden / f"{name}.safetensors")
    image = file.model("sit" if name == "sit_forward" else "self-flow")
    channels, *sides = image.config.shape
    video = SiT(replace(image.config, shape=(channels, 1, *sides))).eval()
    video.load_state_dict(image.state_dict())
    given, reversed_time = file.given, name == "sit_forward"
    if reversed_time:
        x, times = given["x0"], Times.per_sample(1 - given["t"])
    else:
        times = Times.dual(given["t"], given["s"], given["mask"])
        t = image.config.spread(times.per_token_levels())
        x = (1 - t) * given["x0"] + t * given["eps"]
    with torch.no_grad():
        frame = video(x[:, :, None], times, given["y"]).velocity[:, :, 0]
        assert torch.equal(frame, image(x, times, given["y"]).velocity)
    assert (frame * (-1 if reversed_time else 1) - file.out["v"]).abs().max() <= 1e-5


class OneFrame(Digits):
    """The digits as videos of one frame."""

    modality = "video"

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.shape = (1, *self.shape)

    def sample(self, index: int) -> Any:
        sample = super().sample(index)
        return sample._replace(x=sample.x[:, None])


@pytest.mark.parametrize("method", WITHOUT_ENCODER)
def test_training_on_videos_of_one_frame_is_training_on_images(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.DATASETS, "one_frame", f"{__name__}:OneFrame")
    words = (f"method.name={method}", "backbone.patch=4", "eval.metrics=['fd:video:local']")
    image = built(tiny(*words[:2]))
    video = built(tiny(*words, "data.name=one_frame"))
    assert video.model.config.parts[0].kind == "video"
    assert torch.equal(torch.stack(steps(video, 3)), torch.stack(steps(image, 3)))
    assert same(video.model.state_dict(), image.model.state_dict())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, float]]:
    """By modality, what a run that was never killed leaves, and the seconds it takes in a process with warm
    caches."""
    found: dict[str, tuple[str, float]] = {}

    def of(modality: str) -> tuple[str, float]:
        if modality not in found:
            out, spec = tmp_path_factory.mktemp(modality), modal(modality, *SPEC)
            left = everything(trained(spec, out / "whole"))
            begun = time.monotonic()
            assert in_child(lambda: trained(spec, out / "timed")) == 0
            found[modality] = left, time.monotonic() - begun
        return found[modality]

    return of


@pytest.mark.parametrize("kills", [2, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "modality",
    # A video with its sound kills both kinds; tests/promises/test_kill.py kills images.
    [one if one == "joint" else pytest.param(one, marks=pytest.mark.slow) for one in MODALITIES],
)
def test_run_killed_at_random_moments_ends_with_the_same_bits(
    modality: str, kills: int, tmp_path: Path, unbroken: Any
) -> None:
    """Promise 4: a run that is killed again and again, and each time continued, ends with the bits of one
    that was not."""
    expected, duration = unbroken(modality)
    spec, dice = modal(modality, *SPEC), random.Random(f"{modality} {kills}")
    for _ in range(kills):
        moment = dice.uniform(0.1, 0.9) * duration
        assert in_child(lambda: trained(spec, tmp_path), kill_after=moment) in (-signal.SIGKILL, 0)
    assert everything(trained(spec, tmp_path)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "calls"),
    [(kill.in_a_step, 7), (kill.halfway_through_a_checkpoint, 2), (kill.in_an_evaluation, 0)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("modality", MODALITIES)
def test_run_killed_at_the_worst_moments_ends_with_the_same_bits(
    modality: str, where: Callable[[int], None], calls: int, tmp_path: Path, unbroken: Any
) -> None:
    expected, _ = unbroken(modality)
    spec = modal(modality, *SPEC)

    def dying() -> None:
        where(calls)
        trained(spec, tmp_path)

    assert in_child(dying) == -signal.SIGKILL
    assert everything(trained(spec, tmp_path)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modality", "method"),
    [(modality, method) for modality in MODALITIES for method in registry.METHODS if method not in ALIKE],
)
def test_every_method_continues_to_the_bits_of_an_unbroken_run(
    modality: str, method: str, tmp_path: Path
) -> None:
    """Promise 4, for each method that can run there; `self_flow` is killed above."""
    if (modality, method) in REFUSED:
        pytest.skip(REFUSED[modality, method])
    spec = modal(modality, *method_words(method))
    unbroken = trained(spec, tmp_path / "a")
    shutil.copytree(unbroken.path, tmp_path / "b" / spec.id)
    (tmp_path / "b" / spec.id / DONE).unlink()
    (tmp_path / "b" / spec.id / "checkpoints" / "step-00000006.safetensors").unlink()
    assert everything(trained(spec, tmp_path / "b")) == everything(unbroken)


OTHERS = {
    "video": ("data.frames=8", "backbone.patch_time=4", "time.late=0.05", "time.shift=2.95"),
    "audio": ("data.frames=32", "backbone.patch=4", "time.kind=logit_normal"),
    "joint": (
        "data.frames=8",
        "backbone.patch_sound=8",
        "data.audio_weight=0.4",
        "time.apart=true",
        "method.mask_ratio_audio=0.1",
    ),
}


@pytest.mark.parametrize("modality", MODALITIES)
def test_same_spec_has_the_same_id(modality: str, tmp_path: Path) -> None:
    """Promise 7: however it is written, wherever it runs; and whatever can change its results changes it."""
    spec = modal(modality, "method.name=self_flow")
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    assert load_spec(str(tmp_path / "spec.toml")).id == spec.id
    words = (*TINY, *SMALL, *MODALITIES[modality], "method.name=self_flow")
    final = dict(word.partition("=")[::2] for word in words)  # of settings given twice the last one holds
    assert load_spec("digits", [f"{path}={value}" for path, value in sorted(final.items())]).id == spec.id
    free = ("data.workers=2", "runtime.threads=2", "eval.batch_size=3", "train.accumulate=2")
    defaults = ("time.late=0.0", "time.apart=false", "data.video_weight=0.5", "data.audio_weight=0.5")
    assert {modal(modality, "method.name=self_flow", word).id for word in (*free, *defaults)} == {spec.id}
    others = {modal(modality, "method.name=self_flow", word).id for word in OTHERS[modality]}
    assert len(others - {spec.id}) == len(OTHERS[modality])


@pytest.mark.parametrize("modality", MODALITIES)
def test_finished_run_is_not_changed(modality: str, tmp_path: Path) -> None:
    """Promise 7: the same command again does nothing."""
    run = trained(modal(modality), tmp_path).path
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    trained(modal(modality), tmp_path)
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()} == before
