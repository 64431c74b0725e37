"""The real side of a run's evaluations: features of the training split, and noise floors, kept by content.

Every process that needs the same samples through the same network shares one pass (kept_features.py). A file
of statistics (`eval.reference`) takes the place of the training split.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.data.dataset import Dataset, shapes_of
from harness.data.open import images
from harness.errors import UserError
from harness.evaluation.features import FeaturePass, FeatureSet, Masked
from harness.evaluation.inputs import network_inputs
from harness.evaluation.kept_features import (
    PROBE,
    Kept,
    Note,
    ignore,
    kept_features,
    network_identity,
    samples_identity,
)
from harness.evaluation.noise_floor import halves_mask, noise_floor
from harness.files.parse import parse_json
from harness.runtime.distributed import World
from harness.runtime.rounds import rounds, stop_if_any_failed
from metrics import MetricError
from metrics.extractors.base import Extractor
from metrics.suite import Metric

REAL_BATCH = 500
"""Real samples in one pass of an extractor."""
FIRST_NOTE, NEXT_NOTE = 2.0, 10.0
"""Seconds until the first note of a pass, and between notes."""
FLOORS = "floors"
# Any: a row of JSON with mean, n and n_real.
Floors = Mapping[str, Mapping[str, Any]]
"""Part of a `Side` -> its noise floor."""


@dataclass(frozen=True)
class RealSamples:
    """Real samples as one network reads them."""

    # Any: an extractor over images or clips, which share no base class
    extract: Any
    kind: str
    """Modality of the network: `image` or `video`."""
    dataset: Dataset
    world: World
    what: str
    """The metrics that the samples are read for, for notes."""
    note: Note = ignore

    def training(
        self, index: np.ndarray, metrics: Sequence[Metric], samples: int
    ) -> tuple[FeatureSet, Floors]:
        """Return the outputs of the samples at `index` that metrics need, and the floors between their
        halves.

        `samples` is the number of generated samples. The values are complete on rank 0 only.
        """
        real = {metric.real for metric in metrics} - {""}
        floored = _floored(metrics)
        if not real:
            return FeatureSet(), {}

        def make() -> Kept:
            everything, subset, rest = (FeatureSet.of_parts(parts) for parts in (real, floored, floored))
            mask = halves_mask(len(index), samples)
            self._read(index, [Masked(everything), Masked(subset, mask), Masked(rest, ~mask)])
            pairs = {part: (rest.moments[part], subset.moments[part]) for part in floored}
            return Kept({"all": everything}, {FLOORS: _measured(pairs)})

        halves = samples if floored else 0
        content = ["training", *self._identity(index), sorted(real), sorted(floored), halves]
        found = kept_features(content, make, self.world, self._waiting)
        return found.sets.get("all", FeatureSet()), parse_json(found.notes.get(FLOORS, "{}"))

    def held_out(
        self, index: np.ndarray, metrics: Sequence[Metric], reference: FeatureSet, of: Sequence[Any]
    ) -> Floors:
        """Return the floors between a reference and the samples at `index`; `of` identifies the reference."""
        floored = _floored(metrics)
        if not floored or not len(index):
            return {}

        def make() -> Kept:
            unseen = FeatureSet.of_parts(floored)
            self._read(index, [Masked(unseen)])
            if not self.world.main:
                return Kept()
            pairs = {part: (reference.moments[part], unseen.moments[part]) for part in floored}
            return Kept(notes={FLOORS: _measured(pairs)})

        content = ["held out", *self._identity(index), sorted(floored), list(of)]
        found = kept_features(content, make, self.world, self._waiting)
        return parse_json(found.notes.get(FLOORS, "{}"))

    # Any: JSON
    def _identity(self, index: np.ndarray) -> list[Any]:
        if not self.world.main:
            return []
        shapes = shapes_of(self.dataset)
        first = torch.from_numpy(images(self.dataset, index[:PROBE])[0])
        try:
            network = network_identity(self.extract, network_inputs(first, shapes, self.kind))
        except MetricError as error:
            # The pass raises the same error on every rank.
            network = [str(error)]
        return [*network, self.kind, *samples_identity(self.dataset, index)]

    def _read(self, index: np.ndarray, sets: Sequence[Masked]) -> None:
        note = self.note if self.world.main else ignore
        what = f"reading {len(index):,} real samples for {self.what}"
        real_features(self.extract, self.dataset, index, sets, self.kind, self.world, Count(note, what))

    def _waiting(self) -> None:
        self.note(f"waiting for another process that reads the real samples for {self.what}")


class Count:
    """Notes on a long pass: the number of samples so far, every few seconds."""

    def __init__(self, note: Note, what: str) -> None:
        self._note, self._what = note, what
        self._next = time.monotonic() + FIRST_NOTE

    def at(self, done: int) -> None:
        """Show the number of samples done, if it is time."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + NEXT_NOTE
            self._note(f"{self._what}: {done:,}")


def real_features(
    extract: Extractor,
    dataset: Dataset,
    index: np.ndarray,
    sets: Sequence[Masked],
    kind: str,
    world: World,
    count: Count | None = None,
) -> None:
    """Extract features of the real samples once and add them to every set (all rows, or those in its mask).

    The work is split over ranks, and rank 0 holds the result. If the features cannot be used, the rank where
    that happens raises `UserError`, and the others raise `RunStopped`.
    """
    features = FeaturePass(extract, sets, world)

    def stop_if_failed(failed: MetricError | None) -> None:
        stop_if_any_failed(world, failed is not None)
        if failed is not None:
            raise UserError(f"the training data cannot be measured by '{extract.name}': {failed}") from failed

    for turn in rounds(range(len(index)), REAL_BATCH, world):
        x = torch.from_numpy(images(dataset, index[turn.local.start : turn.local.stop])[0])
        failed: MetricError | None = None
        try:
            features.add(network_inputs(x, shapes_of(dataset), kind), turn=turn)
        except MetricError as error:
            failed = error
        stop_if_failed(failed or features.error)
        if count is not None:
            count.at(turn.combined.stop)
    features.finish()
    stop_if_failed(features.error)


def _floored(metrics: Sequence[Metric]) -> set[str]:
    return {metric.real for metric in metrics if metric.noise_floor}


def _measured(pairs: Mapping[str, tuple[Any, Any]]) -> str:
    """Return the noise floor of each part as JSON, without those of fewer than 2 samples."""
    floors = {part: noise_floor(reference, other) for part, (reference, other) in pairs.items()}
    return json.dumps({part: floor for part, floor in sorted(floors.items()) if floor})
