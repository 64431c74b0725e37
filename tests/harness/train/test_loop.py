"""The training loop: equal bits with knobs off, settings that do not change results, and stops."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from harness.backbone.sit import Block
from harness.config.training_spec import EmaSpec, TrainSpec
from harness.data.feed import Feed, MicroBatches
from harness.data.open import open_dataset, split
from harness.errors import RunStopped, UserError
from harness.records.record import Record
from harness.runtime.random_streams import Streams
from harness.train.schedule import ema_decay, learning_rate_factor, set_learning_rate
from harness.train.state import update_ema
from tests.support.runs import events, everything, losses, part, tiny, trained, weights

pytestmark = pytest.mark.usefixtures("quick_networks")


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return trained(tiny("train.steps=50", "eval.every=50"), tmp_path_factory.mktemp("flow"))


@pytest.mark.parametrize(
    "knobs_off",
    [
        pytest.param(["method.name=repa", "method.coefficient=0"], id="repa", marks=pytest.mark.slow),
        ["method.name=self_flow", "method.gamma=0", "method.mask_ratio=0"],
    ],
    ids=lambda knobs: knobs[0].split("=")[1],
)
def test_method_with_knobs_off_has_the_bits_of_flow(
    flow: Record, tmp_path: Path, knobs_off: list[str]
) -> None:
    """Promise 2: 50 steps with the same losses and the same weights, bit for bit."""
    other = trained(tiny("train.steps=50", "eval.every=50", *knobs_off), tmp_path)
    assert len(losses(flow)) == 50 and losses(other) == losses(flow)
    assert [e["loss"] for e in other.of("train")] == [e["loss"] for e in flow.of("train")]
    assert all(part(other, name) == part(flow, name) for name in ("model", "ema"))
    assert other.of("eval")[-1]["metrics"] == flow.of("eval")[-1]["metrics"]
    assert other.of("train")[-1]["flops"] == flow.of("train")[-1]["flops"]


def test_methods_share_the_first_flow_loss(flow: Record, tmp_path: Path) -> None:
    """The first flow loss depends only on initial weights, data, noise and base times, which REPA shares."""
    repa = trained(tiny("train.steps=4", "method.name=repa", "method.encoder.name=random:tiny"), tmp_path)
    assert losses(repa)[0] == losses(flow)[0] and losses(repa)[2] != losses(flow)[2]


def test_flops_fall_when_alignment_stops(tmp_path: Path) -> None:
    record = trained(tiny("method.name=self_flow", "method.schedule.until=5"), tmp_path)
    train = record.of("train")
    assert ["align" in event["losses"] for event in train] == [True] * 5 + [False] * 7
    steps = np.diff([0, *(event["flops"] for event in train)])
    assert len(set(steps[:5])) == len(set(steps[5:])) == 1 and steps[5] < 0.9 * steps[0]


def test_training_lowers_the_loss(flow: Record) -> None:
    smooth = np.convolve(losses(flow), np.ones(10) / 10, mode="valid")
    assert smooth[-1] < 0.8 * smooth[0]


SELF_FLOW_AND_SLOWLY_FLOW = pytest.mark.parametrize(
    "method", [pytest.param("flow", marks=pytest.mark.slow), "self_flow"]
)


@SELF_FLOW_AND_SLOWLY_FLOW
def test_settings_outside_the_hash_do_not_change_the_bits(tmp_path: Path, method: str) -> None:
    base = trained(tiny(f"method.name={method}"), tmp_path / "a")
    for number, changes in enumerate(
        [
            ("data.workers=2", "train.keep_checkpoints=9", "train.checkpoint_every=5"),
            ("runtime.checkpoint_activations=true",),
        ]
    ):
        other = trained(tiny(f"method.name={method}", *changes), tmp_path / str(number))
        assert other.id == base.id and weights(other) == weights(base)
        assert [e for e in events(other) if e["kind"] != "checkpoint"] == [
            e for e in events(base) if e["kind"] != "checkpoint"
        ]


@pytest.mark.slow
def test_accumulation_and_compile_give_the_same_numbers(tmp_path: Path) -> None:
    """The draws are the same. Sums are grouped differently, so losses agree to 1e-5, not bit for bit."""
    base = trained(tiny("method.name=self_flow"), tmp_path / "a")
    for name, change in {"b": "train.accumulate=4", "c": "runtime.compile=true"}.items():
        assert losses(trained(tiny("method.name=self_flow", change), tmp_path / name)) == pytest.approx(
            losses(base), rel=1e-5
        )


def test_checkpointed_activations_run_every_block_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of equal bits above relies on this. Teacher and evaluation have no gradient and keep one
    pass."""
    passes, forward = [], Block.forward

    def counted(self: Block, *given):
        passes.append(torch.is_grad_enabled())
        return forward(self, *given)

    monkeypatch.setattr(Block, "forward", counted)
    counts = []
    for number, change in enumerate(([], ["runtime.checkpoint_activations=true"])):
        passes.clear()
        trained(
            tiny("train.steps=2", "eval.every=2", "method.name=self_flow", *change), tmp_path / str(number)
        )
        counts.append((passes.count(True), passes.count(False)))
    steps, blocks = 2, 4
    assert counts[1] == (counts[0][0] + steps * blocks, counts[0][1])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["flow", "self_flow", "sra"])
def test_compiled_bfloat16_stays_near_eager(tmp_path: Path, method: str) -> None:
    """The draws are the same, but fused operations round less often."""
    eager, compiled = (
        trained(
            tiny(f"method.name={method}", "train.precision=bfloat16", f"runtime.compile={compiled}"),
            tmp_path / compiled,
        )
        for compiled in ("false", "true")
    )
    assert eager.id == compiled.id
    assert losses(compiled) == pytest.approx(losses(eager), rel=0.01)


@SELF_FLOW_AND_SLOWLY_FLOW
def test_bfloat16_stays_near_float32(tmp_path: Path, method: str) -> None:
    full, half = (
        trained(tiny(f"method.name={method}", f"train.precision={p}"), tmp_path)
        for p in ("float32", "bfloat16")
    )
    assert full.id != half.id and losses(half) != losses(full)
    assert losses(half) == pytest.approx(losses(full), rel=0.03)


def test_batches_do_not_depend_on_ranks_or_micro_batches() -> None:
    """Promise 1: two ranks with two micro-batches each have, together, the batches of one process."""
    spec = tiny("data.flip=true")
    dataset = open_dataset(spec.data)
    train = split(dataset, 0.5).train
    feed = lambda: Feed(dataset, train, Streams(0), label_drop=0.3, flip=True)  # noqa: E731
    steps = range(100, 160)
    full = list(feed().batches(MicroBatches(steps, 16), workers=0))
    parts = [list(feed().batches(MicroBatches(steps, 16, 2, rank, 2), workers=rank)) for rank in (0, 1)]
    for number, batch in enumerate(full):
        cut = [p for rank in (0, 1) for p in parts[rank][2 * number : 2 * number + 2]]
        assert np.array_equal(batch.index, np.concatenate([p.index for p in cut]))
        for name in ("x0", "y", "label"):
            assert torch.equal(getattr(batch, name), torch.cat([getattr(p, name) for p in cut]))


def test_epoch_has_every_sample_once_and_drops_labels_at_the_set_rate() -> None:
    dataset = open_dataset(tiny().data)
    train = split(dataset, 0.5).train
    feed = Feed(dataset, train, Streams(0), label_drop=0.0, flip=False)
    assert sorted(feed._place(i) for i in range(len(train), 2 * len(train))) == sorted(train)
    dropped = Feed(dataset, train, Streams(0), label_drop=0.25, flip=False).batch(np.arange(4000)).y == 10
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_run_stops_when_the_loss_is_not_finite(tmp_path: Path) -> None:
    spec = tiny("train.learning_rate=1e30", "train.checkpoint_every=1")
    with pytest.raises(RunStopped, match=r"not finite at step \d+; the last good checkpoint is step-\d+"):
        trained(spec, tmp_path)
    record = Record(tmp_path / spec.id)
    assert record.status == "failed" and "not finite" in record.failure["reason"]
    assert all(np.isfinite(event["loss"]) for event in record.of("train"))


def test_finished_run_is_not_changed_when_rerun(tmp_path: Path) -> None:
    record = trained(tiny(), tmp_path)
    before = {file: file.stat().st_mtime_ns for file in record.path.rglob("*") if file.is_file()}
    text = everything(record)
    again = trained(tiny(), tmp_path)
    assert everything(again) == text
    assert {file: file.stat().st_mtime_ns for file in record.path.rglob("*") if file.is_file()} == before


def test_run_is_rejected_when_its_data_have_changed(tmp_path: Path) -> None:
    record = trained(tiny(), tmp_path)
    (record.path / "done").unlink()
    environment = record.path / "environment.json"
    environment.write_text(
        environment.read_text().replace(record.environment[0]["data_fingerprint"], "0" * 16)
    )
    with pytest.raises(UserError, match="the data have changed since"):
        trained(tiny(), tmp_path)


def test_run_is_rejected_when_its_batch_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.batch_size = 8 cannot be divided into 3"):
        trained(tiny("train.accumulate=3"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_ema_follows_its_recursion_and_warm_up() -> None:
    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = 0.75 * a.weight.double() + 0.25 * b.weight.double()
    update_ema(a, b, 0.75)
    torch.testing.assert_close(a.weight.double(), expected, rtol=1e-6, atol=1e-7)
    assert ema_decay(EmaSpec(decay=0.99), 1) == 0.99
    assert [ema_decay(EmaSpec(decay=0.99, warmup=True), step) for step in (1, 8, 10_000)] == [
        2 / 11,
        0.5,
        0.99,
    ]


def test_learning_rate_warms_up() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    train = TrainSpec(learning_rate=0.4, warmup_steps=4)
    assert [set_learning_rate(optimizer, train, step) for step in (1, 2, 4, 9)] == pytest.approx(
        [0.1, 0.2, 0.4, 0.4]
    )


def test_inverse_square_root_is_that_of_edm2_and_knows_no_last_step() -> None:
    """EDM2's formula, whose warm-up multiplies."""
    train = TrainSpec(steps=23, warmup_steps=8, decay="inverse_sqrt", decay_after=4)
    steps = (2, 4, 8, 16, 400)
    expected = [min(step / 8, 1) / max(step / 4, 1) ** 0.5 for step in steps]
    assert [learning_rate_factor(train, step) for step in steps] == pytest.approx(expected)
    long = train.model_copy(update={"steps": 2300})
    assert [learning_rate_factor(long, step) for step in steps] == pytest.approx(expected)
    settings = ("train.decay=inverse_sqrt", "train.decay_after=4")
    assert tiny(*settings).id == tiny(*settings, "train.steps=99").id != tiny(settings[0]).id != tiny().id
    assert not tiny(*settings).horizon
    with pytest.raises(UserError, match=r"train\.decay_after = 4 is read only with .*'inverse_sqrt'"):
        tiny("train.decay=cosine", settings[1])


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_learning_rate_decays_from_the_warm_up_to_the_end(decay: Literal["linear", "cosine"]) -> None:
    """Half way between both ends the factor is 1/2, and it would be 0 one step after the last."""
    train = TrainSpec(steps=23, warmup_steps=4, decay=decay)
    assert [learning_rate_factor(train, step) for step in (2, 4)] == [0.5, 1.0]
    assert learning_rate_factor(train, 14) == pytest.approx(0.5)
    assert learning_rate_factor(train, 24) == pytest.approx(0, abs=1e-12)
    factors = [learning_rate_factor(train, step) for step in range(4, 24)]
    assert factors == sorted(factors, reverse=True) and factors[-1] > 0
