"""The A/A test: a baseline against itself on disjoint seeds. What it measures is the noise floor of an
installation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import UserError
from reports.audit.audit import crossed
from reports.audit.curve_shape import speedup_between
from reports.audit.inputs.run_log import AuditRun, AuditRuns
from reports.stats.speedup import Speedup, closed_ends

LEAST = 4


@dataclass(frozen=True)
class SelfTest:
    """The speed-up of one half of a method's seeds over the other."""

    method: str
    target: float
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    gain: Speedup

    @property
    def floor(self) -> float | None:
        """Half the interval, as a factor: the smallest difference that two arms of this size resolve. None
        where an end is open."""
        ends = closed_ends(self.gain)
        return math.sqrt(ends[1] / ends[0]) if ends else None

    @property
    def holds(self) -> bool | None:
        """Whether the interval contains 1; None if there is no interval. By chance it fails to in 1 -
        confidence of all installations that are sound."""
        return None if self.gain.low is None else self.gain.direction == "unresolved"


def run_selftest(runs: Mapping[int, AuditRun], axis: str, target: float, confidence: float) -> SelfTest:
    """Return every other seed against the rest. Raises `UserError` for fewer than four runs, and for runs
    that do not record the axis."""
    seeds = sorted(runs)
    if len(seeds) < LEAST:
        raise UserError(
            f"a self-test needs at least {LEAST} finished runs of one method; there are {len(seeds)}"
        )
    for log in runs.values():
        if axis not in log.costs.totals:
            raise UserError(f"{log.source} does not record {axis}")
    halves = tuple(seeds[::2]), tuple(seeds[1::2])
    logs = AuditRuns({seed: runs[seed] for seed in halves[0]}, {seed: runs[seed] for seed in halves[1]})
    return SelfTest(
        runs[seeds[0]].method, target, halves, speedup_between(logs, axis, crossed(logs, target), confidence)
    )
