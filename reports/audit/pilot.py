"""Pilot runs: the spread of times to target over seeds, and the factors that n seeds detect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.errors import UserError
from reports.audit.inputs.run_log import AuditRun
from reports.stats.crossing import crossing
from reports.stats.power import SeedSpread, detectable_with, pairs_needed, spread_of

SEEDS = range(2, 21)


@dataclass(frozen=True)
class Pilot:
    """The spread measured by pilot runs of one or two arms, and the factors that it makes detectable."""

    arms: tuple[str, ...]
    target: float
    spread: SeedSpread
    detectable: Mapping[int, tuple[float, float, float]]
    """n -> the factor that n seeds distinguish from 1 with 80 % power.

    Three values: at the measured spread, and at both ends of its interval."""


def read_pilot(
    arms: Mapping[str, Mapping[int, AuditRun]], axis: str, target: float, confidence: float
) -> Pilot:
    """Measure the spread over the seeds of one arm, or over the pairs of two arms that share seeds.

    Raises `UserError` for fewer than two runs or pairs, and for runs that do not cross the target.
    """
    logs = [{seed: _log_time(log, axis, target) for seed, log in runs.items()} for runs in arms.values()]
    shared = sorted(set.intersection(*(set(own) for own in logs)))
    if len(shared) < 2:
        what = "runs of one method" if len(logs) == 1 else "seeds that both methods have"
        raise UserError(f"a pilot needs at least two {what}; there are {len(shared)}")
    times = np.array([[own[seed] for seed in shared] for own in logs])
    paired = len(logs) == 2
    spread = spread_of(times[0] - times[1] if paired else times[0], paired=paired, confidence=confidence)

    def factor(n: int, sd: float) -> float:
        return detectable_with(n, sd, confidence, paired=paired)

    found = {n: (factor(n, spread.sd), factor(n, spread.low), factor(n, spread.high)) for n in SEEDS}
    return Pilot(tuple(arms), target, spread, found)


def seeds_for(factor: float, spread: SeedSpread, confidence: float) -> int | None:
    """Return the number of seeds, or pairs, that distinguish this factor from 1 with 80 % power.

    None if more than a thousand are needed.
    """
    return pairs_needed(abs(math.log(factor)), spread.sd, confidence, paired=spread.paired)


def _log_time(log: AuditRun, axis: str, target: float) -> float:
    found = crossing(log.curve, target)
    if found.censored is not None:
        side = "does not reach" if found.censored == "right" else "starts below"
        raise UserError(
            f"{log.method} seed {log.seed} {side} {target:g}: choose a target that every pilot run crosses"
        )
    if axis not in log.costs.totals:
        raise UserError(f"{log.source} does not record {axis}")
    return math.log(log.costs.at(axis, found.step))
