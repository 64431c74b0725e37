"""One run of a race: its curve, its costs, and when it reached the target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from harness.records.record import Record
from reports.race.protocols import protocols_of
from reports.stats.curves import Costs, Crossing, Curve, costs_of, crossing, curve_of, first_crossing
from reports.stats.speedup import Time


@dataclass(frozen=True)
class RaceRun:
    """One run of an arm. It counts in the numbers if it was evaluated by the metric and has finished or
    failed.

    A failed run is known up to its last evaluation: unless it had reached the target by then, it had not
    arrived.
    """

    record: Record
    arm: str
    seed: int
    costs: Costs
    metric: str = ""
    fit: Curve | None = None
    """None if the run was never evaluated by the metric; `curve` where it is known to exist."""
    sustained: Crossing | None = None
    """None for a run that does not count, and without a target; `crossing` where it is known to exist."""
    first: Crossing | None = None

    @property
    def evaluated(self) -> bool:
        return self.fit is not None

    @property
    def done(self) -> bool:
        return self.evaluated and self.record.status == "done"

    @property
    def counts(self) -> bool:
        return self.evaluated and self.record.status in ("done", "failed")

    @property
    def crosses(self) -> bool:
        """Whether the run has crossings (that may be censored)."""
        return self.sustained is not None

    @property
    def curve(self) -> Curve:
        """The metric against steps; only of a run that was `evaluated`."""
        assert self.fit is not None
        return self.fit

    @property
    def crossing(self) -> Crossing:
        """The sustained crossing of the target; only of a run that `crosses`."""
        assert self.sustained is not None
        return self.sustained

    @property
    def first_crossing(self) -> Crossing:
        """The first crossing of the target; only of a run that `crosses`."""
        assert self.first is not None
        return self.first

    @cached_property
    def protocols(self) -> frozenset[str]:
        """The hashes of the evaluation protocols under which the metric was measured."""
        return frozenset(protocols_of(self.record, self.metric))

    def time(self, axis: str) -> Time:
        return Time(self.costs.at(axis, self.crossing.step), self.crossing.censored)


def run_of(label: str, seed: int, record: Record, metric: str) -> RaceRun:
    """Read a run: its costs, and its curve if it was evaluated by the metric."""
    return RaceRun(record, label, seed, costs_of(record), metric, curve_of(record, metric))


def cross(run: RaceRun, target: float | None) -> RaceRun:
    """Return the run with its crossings of a target, or unchanged if it does not count or there is no
    target."""
    if target is None or not run.counts:
        return run
    return replace(run, sustained=crossing(run.curve, target), first=first_crossing(run.curve, target))
