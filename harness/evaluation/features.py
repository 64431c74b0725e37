"""Feature passes: the outputs of one network over samples, collected as moments or as rows.

Both the evaluation of a run (evaluator.py) and `flowrace eval SAMPLES` (samples/score.py) use them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.runtime.distributed import World
from harness.runtime.rounds import Round, gather_round
from metrics import MetricError
from metrics.distances.frechet import Moments
from metrics.extractors.base import Extractor
from metrics.suite import Side

STREAMED = {"features", "spatial"}
"""Parts of a `Side` for which moments suffice."""
KEPT = {"rows": "features", "logits": "logits"}
"""Part of a `Side` that is needed row by row -> the network output that it holds."""


class FeatureSet:
    """The outputs of a network for a set of samples, each as moments, row by row, or both."""

    def __init__(
        self, moments: Collection[str] = (), rows: Collection[str] = (), count: int | None = None
    ) -> None:
        """Choose the outputs to collect. If `count`, the number of samples, is known, rows are stored without
        a copy.
        """
        self.moments = {name: Moments() for name in moments}
        self._rows = {name: _Rows(count) for name in rows}

    @classmethod
    def of_parts(cls, parts: Collection[str]) -> FeatureSet:
        """Return a set that collects the outputs for these parts of a `Side`, and the labels, if any."""
        moments = [part for part in sorted(STREAMED) if part in parts]
        return cls(moments, [*(output for part, output in KEPT.items() if part in parts), "labels"])

    @classmethod
    def restored(cls, moments: Mapping[str, Moments], rows: Mapping[str, np.ndarray]) -> FeatureSet:
        """Return a set of outputs that were collected before."""
        found = cls(rows=rows)
        found.moments = dict(moments)
        for name, array in rows.items():
            found._rows[name].add(array)
        return found

    @property
    def outputs(self) -> set[str]:
        """Return the names of the network outputs that this set collects."""
        return {*self.moments, *self._rows} - {"labels"}

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """Return the outputs that are collected row by row; those that no sample had are left out."""
        return {name: rows.array() for name, rows in self._rows.items() if rows.parts}

    def add(self, outputs: Mapping[str, Tensor], mask: np.ndarray | None = None) -> None:
        """Add a batch on the CPU, or the samples of it that a mask selects.

        Raises `MetricError` for features that are not finite.
        """
        chosen = None if mask is None else torch.from_numpy(mask)
        if chosen is not None and not chosen.any():
            return
        for name, x in outputs.items():
            part = x if chosen is None else x[chosen]
            if name in self.moments:
                self.moments[name].add(part)
            if name in self._rows:
                self._rows[name].add(part.numpy())

    def merged(self, other: FeatureSet) -> FeatureSet:
        """Return the combined moments of both sets; rows are not merged."""
        combined = FeatureSet()
        for source in (self, other):
            for name, moments in source.moments.items():
                combined.moments.setdefault(name, Moments()).merge(moments)
        return combined

    def part(self, name: str) -> np.ndarray | Moments | None:
        """Return the moments of an output, or else its rows, or None."""
        return self.moments.get(name, self.rows.get(name))

    def side(self) -> Side:
        """Return the set in the form that metrics take."""
        rows = self.rows
        return Side(
            features=self.part("features"),
            rows=rows.get("features"),
            spatial=self.part("spatial"),
            logits=rows.get("logits"),
            labels=rows.get("labels"),
        )


class _Rows:
    """Rows collected batch by batch; if their number is known, they are written into one array at once."""

    def __init__(self, count: int | None) -> None:
        self.count, self.n = count, 0
        self.parts: list[np.ndarray] = []

    def add(self, part: np.ndarray) -> None:
        if self.count is None:
            self.parts.append(part)
            return
        if not self.parts:
            self.parts.append(np.empty((self.count, *part.shape[1:]), part.dtype))
        self.parts[0][self.n : self.n + len(part)] = part
        self.n += len(part)

    def array(self) -> np.ndarray:
        if len(self.parts) > 1:
            self.parts = [np.concatenate(self.parts)]
        return self.parts[0]


class Masked(NamedTuple):
    """A feature set of some of the samples."""

    into: FeatureSet
    mask: np.ndarray | None = None
    """bool, one entry a sample; None for all samples."""


class _Pending(NamedTuple):
    """Outputs on their way into rank 0's host memory; the transfer is asynchronous until `_arrived`."""

    outputs: dict[str, Tensor]
    size: int
    """Rows of one batch; with several ranks a round has several batches."""
    done: torch.cuda.Event | None = None


class FeaturePass:
    """A pass of one network over samples, batch by batch, into feature sets.

    While a batch is computed, the outputs of the previous one are transferred to the host. The work can be
    split over ranks, each with one batch of a round. Rank 0 holds the result, in single-process order.
    """

    # Any: an extractor over images, clips or recordings, which share no base class
    def __init__(self, extract: Any, sets: Sequence[Masked], world: World | None = None) -> None:
        self.extract, self.sets = extract, sets
        self.world = world or World(0, 1, extract.device)
        self.wanted = sorted(set().union(*(kept.into.outputs for kept in sets)))
        self.error: MetricError | None = None
        """The reason why the features cannot be used; later batches are dropped."""
        self.n = 0
        """Samples collected so far."""
        self._pending: _Pending | None = None

    def add(self, inputs: Any, labels: Tensor | None = None, turn: Round | None = None) -> None:
        """Run the network on a batch, or on this rank's batch of a round, and collect the previous one.

        `labels` are those of all batches of the round. Raises `MetricError` for inputs that the network does
        not accept.
        """
        pending = self._passed(inputs, labels, turn)
        self.finish()
        self._pending = pending

    def finish(self) -> None:
        """Collect the last batch."""
        pending, self._pending = self._pending, None
        if pending is None or self.error is not None:
            return
        try:
            for outputs in _arrived(pending):
                self._keep(outputs)
        except MetricError as error:
            self.error = error

    def _passed(self, inputs: Any, labels: Tensor | None, turn: Round | None) -> _Pending | None:
        outputs = outputs_of(self.extract, inputs)
        rows = {name: outputs[name] for name in self.wanted if name in outputs}
        if turn is not None:
            gathered = {name: gather_round(x, turn, self.world) for name, x in rows.items()}
            rows = {name: x for name, x in gathered.items() if x is not None}
        if not self.world.main:
            return None
        size = turn.size if turn is not None else len(outputs["features"])
        extra = {} if labels is None else {"labels": labels}
        if self.extract.device.type != "cuda":
            return _Pending({name: x.cpu() for name, x in rows.items()} | extra, size)
        host = {name: x.to("cpu", non_blocking=True) for name, x in rows.items()}
        done = torch.cuda.Event()
        done.record()
        return _Pending(host | extra, size, done)

    def _keep(self, outputs: dict[str, Tensor]) -> None:
        count = len(next(iter(outputs.values())))
        for into, mask in self.sets:
            into.add(outputs, None if mask is None else mask[self.n : self.n + count])
        self.n += count


def outputs_of(extract: Any, inputs: Any) -> dict[str, Tensor]:
    """Return all outputs of one pass by name; the extractor's main output is `features`."""
    if not isinstance(extract, Extractor):
        return {"features": extract(inputs)}
    outputs = extract.outputs(inputs)
    return {**outputs, "features": outputs[extract.output]}


def _arrived(pending: _Pending) -> Iterator[dict[str, Tensor]]:
    """Wait for the outputs and yield them batch by batch."""
    if not pending.outputs:
        return
    if pending.done is not None:
        pending.done.synchronize()
    columns = [x.split(pending.size) for x in pending.outputs.values()]
    for batch in zip(*columns, strict=True):
        yield dict(zip(pending.outputs, batch, strict=True))
