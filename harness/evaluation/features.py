"""What one pass of a network over samples leaves: moments where they are enough, float32 rows where a metric wants them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.runtime.distributed import World
from harness.runtime.rounds import Round, gather_round
from metrics import MetricError
from metrics.distances.frechet import Moments
from metrics.extractors.base import Extractor
from metrics.suite import Metric, Side, metrics_of

STREAMED = {"features", "spatial"}
KEPT = {"rows": "features", "logits": "logits"}
"""Part -> the output whose rows it is."""


class Parts(NamedTuple):
    """What metrics need of the two sides, by the names of `metrics.suite.Metric`."""

    real: frozenset[str]
    fake: frozenset[str]


def parts_of(values: Iterable[str]) -> Parts:
    """What these values need."""
    found: list[Metric] = metrics_of(values)
    return Parts(frozenset(m.real for m in found) - {""}, frozenset(m.fake for m in found))


class Gathered:
    """One side's features, batch by batch."""

    def __init__(self, parts: Collection[str]) -> None:
        self.moments = {part: Moments() for part in STREAMED if part in parts}
        self._rows: dict[str, list[np.ndarray]] = {part: [] for part in KEPT if part in parts}
        self._labels: list[np.ndarray] = []

    @property
    def outputs(self) -> set[str]:
        """The outputs of a network that this side is made of."""
        return {*self.moments, *(KEPT[part] for part in self._rows)}

    def add(self, outputs: dict[str, Tensor], labels: Tensor | None = None) -> None:
        """Take in a batch on the CPU; raises `MetricError` for features that are not finite."""
        for part, moments in self.moments.items():
            moments.add(outputs[part])
        for part, rows in self._rows.items():
            rows.append(outputs[KEPT[part]].numpy())
        if labels is not None:
            self._labels.append(labels.numpy())

    def side(self) -> Side:
        rows = {part: np.concatenate(found) for part, found in self._rows.items() if found}
        return Side(
            features=self.moments.get("features"),
            rows=rows.get("rows"),
            spatial=self.moments.get("spatial"),
            logits=rows.get("logits"),
            labels=np.concatenate(self._labels) if self._labels else None,
        )


class Pending(NamedTuple):
    """Outputs of all processes on their way to the host of the main one, and to no other: nobody waits for them before
    `arrived`."""

    outputs: dict[str, Tensor]
    turn: Round
    done: torch.cuda.Event | None = None


def fetched(
    extract: Extractor, pixels: Tensor, wanted: Collection[str], turn: Round, world: World
) -> Pending:
    """Start one pass of a network over this process's uint8 images of a round, and the way of the wanted outputs."""
    found = extract.outputs(pixels)
    found["features"] = found[extract.output]
    rows = {name: gather_round(found[name], turn, world) for name in sorted(wanted)}
    if not world.main:
        return Pending({}, turn)
    if extract.device.type != "cuda":
        return Pending({name: x.cpu() for name, x in rows.items()}, turn)
    host = {name: x.to("cpu", non_blocking=True) for name, x in rows.items()}
    done = torch.cuda.Event()
    done.record()
    return Pending(host, turn, done)


def arrived(pending: Pending) -> Iterator[tuple[range, dict[str, Tensor]]]:
    """The samples and the outputs of each batch of the round."""
    if not pending.outputs:
        return
    if pending.done is not None:
        pending.done.synchronize()
    columns = [x.split(pending.turn.size) for x in pending.outputs.values()]
    for numbers, *batch in zip(pending.turn.batches, *columns, strict=True):
        yield numbers, dict(zip(pending.outputs, batch, strict=True))


def take_in(
    sides: Mapping[str, Gathered],
    pending: Mapping[str, Pending],
    labels: Callable[[range], Tensor],
    broken: dict[str, str],
) -> None:
    """Take in a round of every network; one whose features are not usable is noted in `broken`, with the reason."""
    for name, waiting in pending.items():
        try:
            for numbers, outputs in arrived(waiting):
                if name not in broken:
                    sides[name].add(outputs, labels(numbers))
        except MetricError as error:
            broken[name] = str(error)
