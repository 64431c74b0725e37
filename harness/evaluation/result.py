"""The result of an evaluation as it is recorded: metrics with their intervals, errors and a sample grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.evaluation.sample_grid import png
from harness.files.files import write_atomic
from metrics import Value
from metrics.intervals import of_replicates


class MetricResult(NamedTuple):
    """A metric as it is recorded: the mean over replicates with Student's t interval, or a single value."""

    mean: float
    low: float | None
    high: float | None
    n: int
    """Samples in each replicate."""
    replicates: tuple[float, ...]
    successes: str = ""
    """`1` for success and `0` for failure of each episode, in the order of the starts; empty for others."""

    @classmethod
    def of_value(cls, value: Value, successes: str = "") -> MetricResult:
        """Return a value that is the same in every replicate."""
        return cls(value.mean, value.low, value.high, value.n, (value.mean,), successes)

    @classmethod
    def of_replicates(cls, values: Sequence[Value], n: int) -> MetricResult:
        """Summarize replicates.

        With a single replicate, use the metric's own interval over samples, if it has one.
        """
        summary = values[0] if len(values) == 1 else of_replicates([value.mean for value in values], n)
        return cls(summary.mean, summary.low, summary.high, n, tuple(value.mean for value in values))

    # Any: JSON
    def row(self) -> dict[str, Any]:
        """Return the result as JSON; a single evaluation lists no replicates."""
        row = self._asdict()
        replicates, successes = row.pop("replicates"), row.pop("successes")
        several = {"replicates": list(replicates)} if len(replicates) > 1 else {}
        return row | several | ({"successes": successes} if successes else {})


@dataclass(frozen=True)
class Result:
    """An evaluation as it is recorded."""

    metrics: dict[str, MetricResult]
    protocol: str
    grid: np.ndarray | None
    """The first samples as a picture, uint8 (H, W) or (H, W, 3), always from the same latents; None if they
    cannot be decoded."""
    errors: dict[str, str] = field(default_factory=dict)
    """Metrics that could not be computed -> the reason."""
    captions: tuple[str, ...] = ()
    """The captions of the samples in the grid; empty for labels."""

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the metrics as JSON."""
        return {name: metric.row() for name, metric in self.metrics.items()}

    def save_grid(self, path: Path) -> None:
        """Write the grid as PNG, with the captions in it, if there is one."""
        if self.grid is not None:
            write_atomic(path, png(self.grid, self.captions))
