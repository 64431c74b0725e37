"""Micro-batches prepared ahead of the step that needs them: samples and draws, on the CPU, on a thread.

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
from harness.flow.method import TrainingMethod
from harness.runtime.random_streams import Streams

T = TypeVar("T")
DEPTH = 2
"""Largest number of micro-batches that wait for the training step."""
_END = object()


class PreparedBatch(NamedTuple):
    """A micro-batch and what the method drew for it."""

    batch: Batch
    draw: Draw

    def to(self, device: torch.device) -> PreparedBatch:
        return PreparedBatch(self.batch.to(device), self.draw.to(device))


def prepare_batches(
    batches: Iterable[Batch], method: TrainingMethod, streams: Streams, *, pin: bool
) -> Iterator[PreparedBatch]:
    """Add the method's draws to each batch; `pin` moves both to page-locked memory, from which a GPU copies
    without waiting."""
    for batch in batches:
        prepared = PreparedBatch(batch, method.draw(streams, batch))
        yield PreparedBatch(*map(pinned, prepared)) if pin else prepared


@contextmanager
def prefetch(items: Iterator[T], depth: int = DEPTH) -> Iterator[Iterator[T]]:
    """Yield the same items in the same order, with up to `depth` of them computed ahead on one thread.

    An error is raised when its item is requested. On exit the item being computed is finished and the rest
    are dropped.
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
        yield cast(T, item)  # only _END is no item


# Any: a batch or a draw is a tree of dataclasses, dictionaries, tensors and plain values.
def pinned(value: Any) -> Any:
    """Return a value with every tensor in it, however deep, in page-locked memory."""
    if isinstance(value, Tensor):
        return value.contiguous().pin_memory()  # pinning cannot copy a tensor that repeats its memory
    if isinstance(value, dict):
        return {name: pinned(one) for name, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{part.name: pinned(getattr(value, part.name)) for part in fields(value)})
    return value
