"""One run of a race: its curve, its costs, and when it reached the target."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness.records.in_threads import read_ahead
from harness.records.record import Record
from reports.race.conditions import conditions_of
from reports.race.log_records import LogRecord
from reports.race.protocols import protocols_of
from reports.stats.crossing import Crossing, crossing, first_crossing
from reports.stats.curves import CLOCK_AXES, Costs, Curve, costs_of, curve_of
from reports.stats.speedup import Time


@dataclass(frozen=True)
class RaceRun:
    """One run of an arm. It counts in the numbers if the metric was evaluated and it has finished or failed.

    A failed run that had not reached the target is censored at its last evaluation.
    """

    record: Record
    arm: str
    seed: int
    costs: Costs
    metric: str = ""
    fit: Curve | None = None
    """None if the metric was never evaluated. Use `curve` if it is known to exist."""
    sustained: Crossing | None = None
    """None if the run does not count or there is no target. Use `crossing` if it is known to exist."""
    first: Crossing | None = None

    @property
    def evaluated(self) -> bool:
        return self.fit is not None

    @cached_property
    def status(self) -> str:
        """The status of the record when it is first used; each look at it asks the disk."""
        return self.record.status

    @property
    def done(self) -> bool:
        return self.evaluated and self.status == "done"

    @property
    def complete(self) -> bool:
        """True if the run went to its last step, so that it has a final value."""
        return self.done and self.record.early_end is None

    @property
    def counts(self) -> bool:
        return self.evaluated and self.status in ("done", "failed")

    @property
    def crosses(self) -> bool:
        """True if the run has crossings, which may be censored."""
        return self.sustained is not None

    @property
    def curve(self) -> Curve:
        """The metric against steps; requires `evaluated`."""
        assert self.fit is not None
        return self.fit

    @property
    def crossing(self) -> Crossing:
        """The sustained crossing of the target; requires `crosses`."""
        assert self.sustained is not None
        return self.sustained

    @property
    def first_crossing(self) -> Crossing:
        """The first crossing of the target; requires `crosses`."""
        assert self.first is not None
        return self.first

    @cached_property
    def protocols(self) -> frozenset[str]:
        """The hashes of the evaluation protocols under which the metric was measured."""
        return frozenset(protocols_of(self.record, self.metric))

    @cached_property
    def conditions(self) -> list[dict[str, Any]]:
        """The conditions under which the metric was measured: sampler, steps, guidance and n."""
        return conditions_of(self.record, self.metric)

    def time(self, axis: str) -> Time:
        """Return the time to target on an axis, in its natural unit; requires `crosses`."""
        return Time(self.costs.at(axis, self.crossing.step), self.crossing.censored)


def read_costs(records: Sequence[Record]) -> dict[Path, Costs]:
    """Return the costs of records by their folders. Equal columns of several runs are kept once."""
    known: dict[bytes, np.ndarray] = {}

    def shared(array: np.ndarray) -> np.ndarray:
        return known.setdefault(hashlib.sha256(array.tobytes()).digest(), array)

    def costs(record: Record) -> Costs:
        found = costs_of(record)
        totals = {
            axis: column if axis in CLOCK_AXES else shared(column) for axis, column in found.totals.items()
        }
        return replace(found, steps=totals["steps"], totals=totals)

    return read_ahead(records, costs)


def run_of(label: str, seed: int, record: Record, metric: str, costs: Costs | None = None) -> RaceRun:
    """Read a run: its costs unless they are known, and its curve if the metric was evaluated."""
    if costs is None:
        costs = record.costs if isinstance(record, LogRecord) and record.costs else costs_of(record)
    return RaceRun(record, label, seed, costs, metric, curve_of(record, metric))


def cross(run: RaceRun, target: float | None) -> RaceRun:
    """Return the run with its crossings of a target; without any if it does not count or there is no
    target."""
    if target is None or not run.counts:
        return replace(run, sustained=None, first=None)
    return replace(run, sustained=crossing(run.curve, target), first=first_crossing(run.curve, target))
