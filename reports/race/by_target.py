"""The speed-up at every target: how the answer depends on the requested quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reports.race.comparability import protocol_hashes
from reports.race.race import Race
from reports.race.run import RaceRun
from reports.stats.crossing import Crossing, crossing
from reports.stats.speedup import Speedup, Time, speedup

TARGETS = 41
"""The number of targets, in geometric progression."""

Crossings = Mapping[str, Mapping[int, tuple[RaceRun, list[Crossing]]]]
"""By arm and seed: the run, and its crossing of each target."""


@dataclass(frozen=True)
class SpeedupByTarget:
    """Speed-ups over the baseline at a range of targets."""

    targets: tuple[float, ...]
    """Descending, so the hardest is last; empty if the runs have no range of targets in common."""
    gains: Mapping[str, Mapping[str, list[Speedup]]]
    """By axis and candidate, one speed-up per target."""


def speedup_by_target(race: Race) -> SpeedupByTarget:
    """Compute the speed-up at every target that all finished runs cross."""
    targets = common_targets(race)
    return SpeedupByTarget(targets, gains_by_target(race, race.axes, targets) if targets else {})


def common_targets(race: Race, count: int = TARGETS) -> tuple[float, ...]:
    """Return a descending geometric progression of targets that every finished run of every arm crosses.

    Empty if fewer than two arms have finished runs, if their curves do not overlap, or if they were
    evaluated under different protocols.
    """
    done = [run for run in race.runs if run.done]
    if len({run.arm for run in done}) < 2 or len(protocol_hashes(race.runs)) > 1:
        return ()
    high = min(run.curve.fitted[0] for run in done)
    low = max(run.curve.fitted[-1] for run in done)
    return tuple(np.geomspace(high, low, count).tolist()) if high > low * 1.001 else ()


def gains_by_target(
    race: Race, axes: Sequence[str], targets: Sequence[float]
) -> dict[str, dict[str, list[Speedup]]]:
    """Return, by axis and candidate, the speed-up at each target, defined as in the verdict."""
    counted = {arm.label: [run for run in race.of(arm.label) if run.counts] for arm in race.arms}
    if not any(counted[label] for label in race.baselines):
        return {axis: {} for axis in axes}
    crossings = {
        label: {run.seed: (run, [crossing(run.curve, target) for target in targets]) for run in runs}
        for label, runs in counted.items()
        if runs
    }
    return {axis: _gains(race, axis, crossings, len(targets)) for axis in axes}


def _gains(race: Race, axis: str, crossings: Crossings, targets: int) -> dict[str, list[Speedup]]:
    every = {
        label: {seed: _times(axis, *crossed) for seed, crossed in by_seed.items()}
        for label, by_seed in crossings.items()
    }
    times = {
        label: [{seed: times[i] for seed, times in by_seed.items()} for i in range(targets)]
        for label, by_seed in every.items()
    }
    pairs = [(label, race.cell_of(label).baseline) for label in race.candidates if label in times]
    return {
        label: [
            speedup(*pair, race.horizon(axis, label)) for pair in zip(times[base], times[label], strict=True)
        ]
        for label, base in pairs
        if base in times
    }


def _times(axis: str, run: RaceRun, crossings: Sequence[Crossing]) -> list[Time]:
    values = run.costs.at_each(axis, np.array([one.step for one in crossings])).tolist()
    return [Time(value, one.censored) for value, one in zip(values, crossings, strict=True)]
