"""Batches from global sample indices: the data side of common random numbers."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from harness.backbone.condition import Text
from harness.data.dataset import Capabilities, Dataset
from harness.data.modality_dropout import draw_present
from harness.data.open import from_pixels, images
from harness.flow.batch import Batch
from harness.runtime.random_streams import Streams


class Captions(Protocol):
    """The captions of the samples of a data set, as features."""

    @property
    def empty(self) -> Text:
        """The features of the empty caption (1, L, D)."""
        ...

    def chosen(self, place: np.ndarray, draw: Tensor) -> Text:
        """Return a caption of each sample at data set indices (B,); `draw` (B,) in [0, 1) chooses it."""
        ...


class Feed:
    """Batches as a pure function of global sample indices.

    Index i is the i-th sample of the run, at position i mod n of epoch i div n. The order of an epoch is
    drawn from its number.
    """

    def __init__(
        self,
        dataset: Dataset,
        train: np.ndarray,
        streams: Streams,
        *,
        label_drop: float,
        flip: bool,
        with_pixels: bool = False,
        alone: Sequence[float] = (),
        captions: Captions | None = None,
        with_given: bool = False,
    ) -> None:
        """`with_pixels` adds to a batch of latents the samples they encode. `alone` holds, for each part, the
        share of samples that consist of it only. `captions` take the place of labels as conditions, and
        `with_given` adds those before drop."""
        self.dataset, self.train, self.streams = dataset, train, streams
        self.captions, self._with_given = captions, with_given
        self.label_drop, self.flip, self.alone = label_drop, flip, alone
        self._latent, self._with_pixels = Capabilities(dataset).latent, with_pixels
        self._epoch: tuple[int, np.ndarray] = (-1, train)

    def batch(self, index: np.ndarray, step: int = 1) -> Batch:
        """Return the batch of global sample indices (B,), which belong to a training step (1-based)."""
        place = self.place(index)
        flipped = self.streams.uniform("flip", index) < 0.5 if self.flip else None
        if self._latent is not None:
            noise = self.streams.normal("posterior", index, self.dataset.shape)
            x0 = self._latent.draws(place, flipped, noise)
            label = torch.tensor([self._latent.label(int(i)) for i in place])
            pixels = _pixels(self.dataset, place, flipped)[0] if self._with_pixels else None
        else:
            (x0, label), pixels = _pixels(self.dataset, place, flipped), None
        dropped = self.streams.uniform("label_drop", index) < self.label_drop
        chosen = None
        if self.captions is None:
            y = torch.where(dropped, self.dataset.classes, label)
        else:
            chosen = self.captions.chosen(place, self.streams.uniform("caption", index))
            y = chosen.where(dropped, self.captions.empty)
        given = chosen if self._with_given else None
        present = draw_present(self.alone, self.streams, index)
        return Batch(index, x0, y, label, step, present=present, pixels=pixels, place=place, given=given)

    def micro_batch(self, part: MicroBatch) -> Batch:
        return self.batch(part.index, part.step)

    def batches(self, parts: Sequence[MicroBatch], workers: int) -> Iterator[Batch]:
        """Iterate over the batches of micro-batches in order, prepared by `workers` processes, or on demand
        in this process for 0."""
        if workers == 0:
            return (self.micro_batch(part) for part in parts)
        loader = DataLoader(
            _Parts(self, parts),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="fork",
            worker_init_fn=_ignore_signals,
        )
        return iter(loader)

    def place(self, index: np.ndarray) -> np.ndarray:
        """Return data set indices, int64 (B,), of global sample indices (B,)."""
        return np.array([self._place(int(i)) for i in index], dtype=np.int64)

    def _place(self, index: int) -> int:
        epoch, offset = divmod(index, len(self.train))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.streams.permutation("order", epoch, len(self.train)))
        return int(self.train[self._epoch[1][offset]])


def _pixels(dataset: Dataset, place: np.ndarray, flipped: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return samples float32 (B, C, *axes) in [-1, 1], mirrored where `flipped`, and labels (B,)."""
    pixels, labels = images(dataset, place)
    x = from_pixels(pixels)
    if flipped is not None:
        x = torch.where(flipped.reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
    return x, torch.from_numpy(labels)


@dataclass(frozen=True)
class MicroBatch:
    """The samples that one rank passes through the network at once."""

    index: np.ndarray
    """(B,) global sample indices."""
    step: int
    """The training step (1-based) that they belong to."""


@dataclass(frozen=True)
class MicroBatches(Sequence[MicroBatch]):
    """Every micro-batch of one rank, in order.

    A step covers `batch_size` indices. Each of `size` ranks takes a contiguous part, in `accumulate` equal
    micro-batches.
    """

    steps: range
    batch_size: int
    accumulate: int = 1
    rank: int = 0
    size: int = 1

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    @overload
    def __getitem__(self, number: int) -> MicroBatch: ...
    @overload
    def __getitem__(self, number: slice) -> list[MicroBatch]: ...
    def __getitem__(self, number: int | slice) -> MicroBatch | list[MicroBatch]:
        if isinstance(number, slice):
            return [self[position] for position in range(*number.indices(len(self)))]
        step, part = divmod(number, self.accumulate)
        length = self.batch_size // (self.size * self.accumulate)
        start = (self.steps[step] - 1) * self.batch_size + (self.rank * self.accumulate + part) * length
        return MicroBatch(np.arange(start, start + length), self.steps[step])


@dataclass(frozen=True)
class _Parts(torch.utils.data.Dataset):
    feed: Feed
    parts: Sequence[MicroBatch]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> Batch:
        return self.feed.micro_batch(self.parts[number])


def _ignore_signals(worker: int) -> None:
    """Ignore stop signals in a worker: they reach every process of the group, and the parent ends its
    workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
