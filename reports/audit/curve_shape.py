"""The check whether one number is enough: are two curves shifted copies of each other?

If the candidate does at step s what the baseline does at S s, the speed-up is S at every target, and at a
common step the metrics differ by log S times the slope: S' = exp(difference of log metric / |slope|). Where
S and S' disagree the curves are not shifted copies, and the speed-up is a function of the target. (The
pairwise rule of modded-nanogpt's third track.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reports.audit.inputs.run_log import AuditRun, AuditRuns
from reports.stats.curves import Crossing, Curve, crossing, slope_at, value_at
from reports.stats.speedup import Speedup, Time, speedup

TARGETS = 7
FLAT = 1e-2
"""A slope (d log metric / d log step) that no time can be read off."""
LOG_MAX = 300.0
"""Of a time, as far as it is reckoned: float64 ends at 709."""


@dataclass(frozen=True)
class Dual:
    """The speed-up in steps as read off the metrics at one step."""

    step: float
    gain: Speedup

    def agrees(self, gain: Speedup) -> bool:
        """Return whether the two intervals meet; an interval that is missing disagrees with nothing."""
        own = self.gain
        if gain.low is None or gain.high is None or own.low is None or own.high is None:
            return True
        return own.high >= gain.low and own.low <= gain.high


def slopes(logs: Mapping[int, AuditRun], crossings: Mapping[int, Crossing]) -> float | None:
    """Return the median slope of an arm's curves where they cross the target; None if they are too short
    to have one."""
    found = [slope_at(log.curve, crossings[seed].step) for seed, log in logs.items()]
    known = [slope for slope in found if slope is not None]
    return float(np.median(known)) if known else None


def dual_speedup(logs: AuditRuns, confidence: float) -> Dual | None:
    """Return the check at the last step that every finished run has; None if curves are too short or flat
    there.

    The slope is the mean of both arms' slopes, which over the distance between shifted copies is that of
    the chord.
    """
    arms = (logs.finished.baseline, logs.finished.candidate)
    if not all(arms):
        return None
    step = min(float(log.curve.steps[-1]) for log in logs.finished.all)
    values = [_log_values(arm, step) for arm in arms]
    slopes = [[end_slope(run.curve, step) for run in arm.values()] for arm in arms]
    known = [[slope for slope in own if slope is not None] for own in slopes]
    if known != slopes or any(len(own) < len(arm) for own, arm in zip(values, arms, strict=True)):
        return None
    slope = float(np.mean([float(np.mean(own)) for own in known]))
    if slope > -FLAT:
        return None
    middle = np.mean([float(value) for own in values for value in own.values()])
    farthest = max(abs(value - middle) for own in values for value in own.values())
    if farthest / -slope > LOG_MAX:
        return None
    baseline, candidate = (
        {seed: Time(math.exp((value - middle) / -slope)) for seed, value in own.items()} for own in values
    )
    return Dual(step, speedup(baseline, candidate, confidence=confidence))


def _log_values(arm: Mapping[int, AuditRun], step: float) -> dict[int, float]:
    """Return the logarithm of the fitted metric at a step, by seed, of the runs that were evaluated around
    it."""
    values = {seed: value_at(run.curve, step) for seed, run in arm.items()}
    return {seed: math.log(value) for seed, value in values.items() if value is not None}


def end_slope(curve: Curve, step: float) -> float | None:
    """Return d log metric / d log step at the end of a curve, from a parabola through the last three
    quarters of its steps; None for fewer than five evaluations."""
    near = (curve.steps >= step / 4) & (curve.steps <= step)
    if near.sum() < 5:
        return None
    x = np.log(curve.steps[near] / step)
    return float(np.polyfit(x, np.log(curve.measured[near]), 2)[1])


def by_target(logs: AuditRuns, axis: str, confidence: float) -> list[tuple[float, Speedup]]:
    """Return speed-ups at targets evenly spaced in logs over the range that all finished runs pass, highest
    first."""
    finished = logs.finished.all or logs.all
    top = min(log.curve.fitted[0] for log in finished)
    bottom = max(log.curve.fitted[-1] for log in finished)
    if bottom >= top:
        return []
    targets = np.geomspace(top, bottom, TARGETS + 2)[1:-1]
    return [(float(target), speedup_at(logs, axis, float(target), confidence)) for target in targets]


def speedup_at(logs: AuditRuns, axis: str, target: float, confidence: float) -> Speedup:
    """Return the speed-up at one target on one axis."""
    arms = (logs.baseline, logs.candidate)
    return speedup_between(
        logs,
        axis,
        [{seed: crossing(log.curve, target) for seed, log in arm.items()} for arm in arms],
        confidence,
    )


def speedup_between(
    logs: AuditRuns, axis: str, crossings: Sequence[Mapping[int, Crossing]], confidence: float
) -> Speedup:
    """Return the speed-up between crossings, on one axis; times are cut at the smallest budget of any
    finished run."""
    arms = (logs.baseline, logs.candidate)
    baseline, candidate = (
        {seed: Time(run.costs.at(axis, own[seed].step), own[seed].censored) for seed, run in arm.items()}
        for arm, own in zip(arms, crossings, strict=True)
    )
    return speedup(baseline, candidate, horizon(logs, axis), confidence)


def horizon(logs: AuditRuns, axis: str) -> float:
    """Return what every finished run may spend."""
    return min(log.costs.budget(axis) for log in logs.finished.all or logs.all)


def ends_above(log: AuditRun, one: Crossing, target: float) -> bool:
    """Return whether a run that reached the target is above it, on average, in the last quarter of its
    evaluations.

    The monotone fit pools such a decline with better values before it.
    """
    last = len(log.curve.steps) - max(len(log.curve.steps) // 4, 1)
    late = np.log(log.curve.measured[last:]).mean() > math.log(target)
    return bool(one.censored != "right" and one.step < log.curve.steps[last] and late)
