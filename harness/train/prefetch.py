"""What a step needs from the CPU, made ahead of it on a thread: samples and draws.

Both are pure functions of global sample indices, so it makes no difference who makes them, nor when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from harness.data.feed import Shares
from harness.flow.batch import Batch, Draw
from harness.train.state import Run

Item = TypeVar("Item")
AHEAD = 2
"""Micro-batches that wait at most."""
_END = object()


class Fed(NamedTuple):
    """What a micro-batch is made of."""

    batch: Batch
    place: np.ndarray
    """(B,) data set indices, by which encoders find what they have cached."""
    draw: Draw


def fed(run: Run, batches: Iterator[Batch], shares: Shares, *, pin: bool) -> Iterator[Fed]:
    """Each micro-batch of `shares` with its draws; `pin` puts it where a GPU takes it from without waiting."""
    for number, batch in enumerate(batches):
        batch = replace(batch, step=shares.steps[number // shares.accumulate])
        found = batch, run.method.draw(run.streams, batch)
        batch, draw = map(pinned, found) if pin else found
        yield Fed(batch, run.feed.place(batch.index), draw)


@contextmanager
def ahead(items: Iterator[Item], depth: int = AHEAD) -> Iterator[Iterator[Item]]:
    """The same items in the same order, up to `depth` of them made beforehand on one thread; an error is raised where its
    item is taken. On leaving, the item that is being made is waited for and the others are given up."""
    thread = ThreadPoolExecutor(1, "ahead")
    try:
        yield _taken(thread, items, depth)
    finally:
        thread.shutdown(cancel_futures=True)


def _taken(thread: ThreadPoolExecutor, items: Iterator[Item], depth: int) -> Iterator[Item]:
    waiting = deque(thread.submit(next, items, _END) for _ in range(depth))
    while (item := waiting.popleft().result()) is not _END:
        waiting.append(thread.submit(next, items, _END))
        yield item


def pinned(value: Any) -> Any:
    """A value with every tensor in it, however deep, in page-locked memory."""
    if isinstance(value, Tensor):
        return value.contiguous().pin_memory()  # pinning cannot copy a tensor that repeats its memory
    if isinstance(value, dict):
        return {name: pinned(one) for name, one in value.items()}
    if is_dataclass(value):
        return replace(value, **{part.name: pinned(getattr(value, part.name)) for part in fields(value)})
    return value
