"""The A/A test: a method against itself on disjoint seeds, which measures the noise floor of an
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
        """Half the width of the interval, as a factor; None if an end is open.

        It is the smallest difference that two arms of this size resolve."""
        ends = closed_ends(self.gain)
        return math.sqrt(ends[1] / ends[0]) if ends else None

    @property
    def holds(self) -> bool | None:
        """True if the interval contains 1; None if there is no interval.

        It is false by chance in a share 1 - confidence of all sound installations."""
        return None if self.gain.low is None else self.gain.direction == "unresolved"


def run_selftest(runs: Mapping[int, AuditRun], axis: str, target: float, confidence: float) -> SelfTest:
    """Compare every other seed with the rest.

    Raises `UserError` for fewer than four runs, and for runs that do not record the axis.
    """
    seeds = sorted(runs)
    if len(seeds) < LEAST:
        raise UserError(
            f"a self-test needs at least {LEAST} finished runs of one method; there are {len(seeds)}"
        )
    for log in runs.values():
        if axis not in log.costs.totals:
            raise UserError(f"{log.source} does not record {axis}")
        if not log.costs.knows(axis):
            raise UserError(
                f"{log.source} ended early, so its {axis} to the last step are unknown; use --axis steps, "
                "images or flops"
            )
    halves = tuple(seeds[::2]), tuple(seeds[1::2])
    logs = AuditRuns({seed: runs[seed] for seed in halves[0]}, {seed: runs[seed] for seed in halves[1]})
    return SelfTest(
        runs[seeds[0]].method, target, halves, speedup_between(logs, axis, crossed(logs, target), confidence)
    )
