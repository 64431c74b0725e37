"""What one pass of a network over samples leaves: moments where they are enough, float32 rows where a metric wants them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metrics.extractor import Extractor
from metrics.frechet import Moments
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
    """Outputs on their way to the host: nobody waits for them before `arrived`."""

    outputs: dict[str, Tensor]
    done: torch.cuda.Event | None


def fetched(extract: Extractor, pixels: Tensor) -> Pending:
    """Start one pass of a network over uint8 images (B, C, H, W), and the way of its outputs to the host."""
    found = extract.outputs(pixels)
    found["features"] = found[extract.output]
    if extract.device.type != "cuda":
        return Pending({name: x.cpu() for name, x in found.items()}, None)
    host = {name: x.to("cpu", non_blocking=True) for name, x in found.items()}
    done = torch.cuda.Event()
    done.record()
    return Pending(host, done)


def arrived(pending: Pending) -> dict[str, Tensor]:
    if pending.done is not None:
        pending.done.synchronize()
    return pending.outputs
