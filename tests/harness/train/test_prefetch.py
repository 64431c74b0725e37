"""Samples and draws prepared on a thread: the same items in the same order, and errors at their item."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.backbone.times import Times
from harness.data.feed import Feed, MicroBatches
from harness.data.open import open_dataset, split
from harness.flow.batch import Batch, Draw
from harness.runtime.random_streams import Streams
from harness.train.prefetch import pinned, prefetch, prepare_batches
from harness.train.state import build_run
from tests.support.runs import tiny


def test_prefetch_yields_all_items_in_order_and_at_most_depth_ahead() -> None:
    made: list[int] = []

    def numbers():
        for number in range(9):
            made.append(number)
            yield number

    with prefetch(numbers(), depth=2) as items:
        assert [next(items), next(items)] == [0, 1]
        assert len(made) <= 2 + 2
        assert list(items) == list(range(2, 9))


def test_prefetch_raises_an_error_when_its_item_is_requested() -> None:
    def failing():
        yield 1
        raise ValueError("image 2 is broken")

    with prefetch(failing()) as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="image 2 is broken"):
            next(items)


def test_prefetch_ends_its_thread_when_left_early() -> None:
    def endless():
        while True:
            yield threading.current_thread().name

    with prefetch(endless()) as items:
        name = next(items)
    assert name.startswith("prefetch") and name not in {thread.name for thread in threading.enumerate()}


def test_prefetched_batches_equal_those_of_the_training_thread(tmp_path: Path) -> None:
    """Promise 1: batches, places and draws, across the end of an epoch, with two micro-batches per step."""
    spec = tiny("method.name=self_flow", "data.flip=true", "train.accumulate=2")
    dataset = open_dataset(spec.data)
    sides = split(dataset, 0.5)
    run = build_run(spec, dataset, sides, torch.device("cpu"))
    first = len(sides.train) // 8 - 2
    steps = range(first, first + 6)
    micro_batches = MicroBatches(steps, 8, 2)
    batches = run.feed.batches(micro_batches, 0)
    with prefetch(prepare_batches(batches, run.method, run.streams, pin=False)) as items:
        made = list(items)
    feed = Feed(dataset, sides.train, Streams(spec.seed), label_drop=spec.train.label_drop, flip=True)
    assert [item.batch.step for item in made] == [step for step in steps for _ in range(2)]
    assert {i // len(sides.train) for item in made for i in item.batch.index} == {0, 1}
    for item, micro_batch in zip(made, micro_batches, strict=True):
        batch = feed.batch(micro_batch.index)
        draw = run.method.draw(Streams(spec.seed), replace(batch, step=micro_batch.step))
        assert torch.equal(item.batch.x0, batch.x0) and torch.equal(item.batch.y, batch.y)
        assert np.array_equal(item.batch.place, feed.place(micro_batch.index))
        assert torch.equal(item.draw.noise, draw.noise)
        assert torch.equal(item.draw.times.levels, draw.times.levels)
        assert torch.equal(item.draw.times.which, draw.times.which)


def test_pinned_accepts_a_tensor_that_repeats_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning is simulated without a GPU: a new storage with the tensor's strides, then a copy into it."""

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        fresh = torch.empty(0, dtype=tensor.dtype).set_(
            torch.empty(tensor.untyped_storage().nbytes(), dtype=torch.uint8).untyped_storage().clone(),
            0,
            tensor.shape,
            tensor.stride(),
        )
        return fresh.copy_(tensor)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    which = torch.arange(6).expand(4, -1)
    with pytest.raises(RuntimeError, match="single memory location"):
        which.pin_memory()
    assert torch.equal(pinned(Times(torch.zeros(4, 6), which)).which, which)


def test_pinned_pins_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page-locked memory needs a GPU, so the calls are recorded instead."""
    requested: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (requested.append(self), self)[1])
    x, y = torch.zeros(2, 3), torch.zeros(2)
    batch = Batch(np.arange(2), x, y.long(), y.long())
    draw = Draw(x, Times.dual(y, y, x.bool()), extra={"cleaner": y})
    pinned_batch, pinned_draw = pinned(batch), pinned(draw)
    assert len(requested) == 3 + 4
    assert pinned_batch.x0 is x and pinned_draw.extra["cleaner"] is y and pinned_draw.groups is None
