"""Micro-batches prepared before their step: samples and draws, on the CPU, on a thread.

Both are pure functions of global sample indices, so neither their order nor the thread changes a bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from harness.flow.batch import Batch, Draw
from harness.flow.draws import draws_of
from harness.flow.method import TrainingMethod
from harness.runtime.random_streams import Streams

T = TypeVar("T")
DEPTH = 2
"""The largest number of micro-batches prepared ahead of the training step."""
_END = object()


class PreparedBatch(NamedTuple):
    """A micro-batch and the method's draws for it."""

    batch: Batch
    draw: Draw

    def to(self, device: torch.device) -> PreparedBatch:
        """Return batch and draws on a device."""
        return PreparedBatch(self.batch.to(device), self.draw.to(device))


def prepare_batches(
    batches: Iterable[Batch], method: TrainingMethod, streams: Streams, *, pin: bool
) -> Iterator[PreparedBatch]:
    """Yield each batch with the method's draws.

    `pin` moves both to page-locked memory, from which a GPU can copy asynchronously.
    """
    for batch in batches:
        prepared = PreparedBatch(batch, draws_of(method, streams, batch))
        yield PreparedBatch(*map(pinned, prepared)) if pin else prepared


@contextmanager
def prefetch(items: Iterator[T], depth: int = DEPTH) -> Iterator[Iterator[T]]:
    """Yield the same items in the same order, with up to `depth` of them computed ahead on one thread.

    An error is raised when its item is requested. On exit, the item being computed is finished and the
    others are dropped.
    """
    thread = ThreadPoolExecutor(1, "prefetch")
    try:
        yield _in_order(thread, items, depth)
    finally:
        thread.shutdown(cancel_futures=True)


def _in_order(thread: ThreadPoolExecutor, items: Iterator[T], depth: int) -> Iterator[T]:
    def submit() -> Future[T | object]:
        return thread.submit(next, items, _END)

    waiting = deque(submit() for _ in range(depth))
    while (item := waiting.popleft().result()) is not _END:
        waiting.append(submit())
        # Every value except _END is an item.
        yield cast(T, item)


# Any: a batch or a draw is a tree of dataclasses, dictionaries, tensors and plain values.
def pinned(value: Any) -> Any:
    """Return a value with all its tensors, at any depth, in page-locked memory."""
    if isinstance(value, Tensor):
        # Pinning cannot copy an expanded tensor, which repeats its memory.
        return value.contiguous().pin_memory()
    if isinstance(value, dict):
        return {name: pinned(item) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{part.name: pinned(getattr(value, part.name)) for part in fields(value)})
    return value
