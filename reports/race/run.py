"""One run of a race: its curve, its costs, and when it reached the target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from harness.records.record import Record
from reports.race.protocols import protocols_of
from reports.stats.curves import Costs, Crossing, Curve, costs_of, crossing, curve_of, first_crossing
from reports.stats.speedup import Time


@dataclass(frozen=True)
class Run:
    """One run of an arm. It counts in the numbers when it has the metric and is finished, or has failed: one that failed is
    known up to its last evaluation, and had not arrived unless it had by then."""

    record: Record
    arm: str
    seed: int
    curve: Curve | None
    costs: Costs
    crossing: Crossing | None = None
    """Sustained; None for a run that does not count."""
    first: Crossing | None = None
    metric: str = ""

    @property
    def done(self) -> bool:
        return self.curve is not None and self.record.status == "done"

    @property
    def counts(self) -> bool:
        return self.curve is not None and self.record.status in ("done", "failed")

    @cached_property
    def protocols(self) -> frozenset[str]:
        """The evaluation protocols (hashes) behind its values of the metric."""
        return frozenset(protocols_of(self.record, self.metric))

    def time(self, axis: str) -> Time:
        return Time(self.costs.at(axis, self.crossing.step), self.crossing.censored)


def run_of(label: str, seed: int, record: Record, metric: str) -> Run:
    return Run(record, label, seed, curve_of(record, metric), costs_of(record), metric=metric)


def cross(run: Run, target: float | None) -> Run:
    """The run with its crossings of a target; as it is where it does not count or there is no target."""
    if target is None or not run.counts:
        return run
    crossed, first = crossing(run.curve, target), first_crossing(run.curve, target)
    return replace(run, crossing=crossed, first=first)
