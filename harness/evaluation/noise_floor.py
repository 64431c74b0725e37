"""Real samples as a network sees them, and the floor: what real samples score against real ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data.dataset import Dataset, shapes_of
from harness.data.open import images
from harness.errors import UserError
from harness.evaluation.features import Gathered, arrived, fetched
from harness.evaluation.inputs import seen
from harness.runtime.distributed import World
from harness.runtime.random_streams import Streams
from harness.runtime.rounds import rounds, stop_if_any_failed
from metrics import MetricError
from metrics.distances.frechet import Moments, frechet_distance
from metrics.extractors.base import Extractor

FLOORED = {"fd": "features", "sfid": "spatial"}
"""Values with a floor, and the part of the features that they are of."""
BATCH = 500


def see(
    extract: Extractor,
    dataset: Dataset,
    index: np.ndarray,
    sides: list[tuple[Gathered, np.ndarray | None]],
    reads: str,
    world: World,
) -> None:
    """One pass over real samples, as a network that reads `image` or `video` sees them, into every side, whole or under its
    mask; the processes share it, and the main one has the sides."""
    wanted = set().union(*(side.outputs for side, _ in sides))
    for turn in rounds(range(len(index)), BATCH, world):
        x = torch.from_numpy(images(dataset, index[_cut(turn.local)])[0])
        failed: MetricError | None = None
        try:
            found = fetched(extract, seen(x, shapes_of(dataset), reads), wanted, turn, world)
            for numbers, outputs in arrived(found):
                _add(sides, outputs, _cut(numbers))
        except MetricError as error:
            failed = error
        stop_if_any_failed(world, failed is not None)
        if failed is not None:
            raise UserError(f"the training data cannot be measured by '{extract.name}': {failed}") from failed


def _add(sides: list[tuple[Gathered, np.ndarray | None]], outputs: dict[str, Tensor], cut: slice) -> None:
    for side, mask in sides:
        side.add(outputs if mask is None else _masked(outputs, mask[cut]))


def _cut(numbers: range) -> slice:
    return slice(numbers.start, numbers.stop)


def chosen(count: int, samples: int) -> np.ndarray:
    """A mask (count,) of as many samples as are generated, at most half, drawn once and for all."""
    mask = np.zeros(count, dtype=bool)
    mask[Streams(0).permutation("floor", 0, count)[: min(samples, count // 2)]] = True
    return mask


def floor(whole: Moments, one: Moments, other: Moments, unseen: Moments) -> dict[str, Any]:
    """What a perfect generator would score: real against real, within the training split and, where there are held-out
    samples, of those against it."""
    found = {}
    for name, part, rest in (("train_halves", one, other), ("held_out", unseen, whole)):
        if part.n > 1 and rest.n > 1:
            found[name] = {"mean": float(frechet_distance(rest, part)), "n": part.n, "n_real": rest.n}
    return found


def _masked(outputs: dict[str, Tensor], mask: np.ndarray) -> dict[str, Tensor]:
    kept = torch.from_numpy(mask)
    return {name: x[kept] for name, x in outputs.items()}
