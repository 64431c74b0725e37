"""The shape of two curves: whether they are shifted copies, so that one speed-up describes them.

If the candidate reaches at step s what the baseline reaches at step S s, the speed-up is S at every target.
At a common step the metrics then differ by log S times the slope: S' = exp(difference of log metric /
|slope|). If S and S' disagree, the curves are not shifted copies, and the speed-up depends on the target.
Source: the pairwise rule of modded-nanogpt's track 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reports.audit.inputs.run_log import AuditRun, AuditRuns
from reports.stats.crossing import Crossing, crossing
from reports.stats.curves import Curve, slope_at, value_at
from reports.stats.speedup import Speedup, Time, speedup

TARGETS = 7
FLAT = 1e-2
"""The slope (d log metric / d log step) below which a curve is too flat for a time."""
LOG_MAX = 300.0
"""The largest logarithm of a time that is computed: exp overflows float64 at 709."""


@dataclass(frozen=True)
class Dual:
    """The speed-up in steps, estimated from the metrics at one step."""

    step: float
    gain: Speedup

    def agrees(self, gain: Speedup) -> bool:
        """Return whether the two intervals overlap; True if either interval is missing."""
        own = self.gain
        if gain.low is None or gain.high is None or own.low is None or own.high is None:
            return True
        return own.high >= gain.low and own.low <= gain.high


def slopes(logs: Mapping[int, AuditRun], crossings: Mapping[int, Crossing]) -> float | None:
    """Return the median slope of an arm's curves at their crossings; None if all are too short."""
    found = [slope_at(log.curve, crossings[seed].step) for seed, log in logs.items()]
    known = [slope for slope in found if slope is not None]
    return float(np.median(known)) if known else None


def dual_speedup(logs: AuditRuns, confidence: float) -> Dual | None:
    """Return the estimate at the last step that every finished run has.

    None if a curve is too short or too flat there. The slope is the mean of both arms' slopes, which for
    shifted copies is the slope of the chord between them.
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
    """Return log metric (fitted) at a step, by seed, for runs evaluated on both sides of it."""
    values = {seed: value_at(run.curve, step) for seed, run in arm.items()}
    return {seed: math.log(value) for seed, value in values.items() if value is not None}


def end_slope(curve: Curve, step: float) -> float | None:
    """Return d log metric / d log step at the end of a curve; None for fewer than five evaluations.

    It is the slope of a parabola, fitted to the evaluations from a quarter of the step on.
    """
    near = (curve.steps >= step / 4) & (curve.steps <= step)
    if near.sum() < 5:
        return None
    x = np.log(curve.steps[near] / step)
    return float(np.polyfit(x, np.log(curve.measured[near]), 2)[1])


def by_target(logs: AuditRuns, axis: str, confidence: float) -> list[tuple[float, Speedup]]:
    """Return targets and their speed-ups, highest target first.

    The targets are evenly spaced in logs over the range that all finished runs pass.
    """
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
    """Return the speed-up between crossings, on one axis.

    Times are censored at the smallest budget of any finished run.
    """
    arms = (logs.baseline, logs.candidate)
    baseline, candidate = (
        {seed: Time(run.costs.at(axis, own[seed].step), own[seed].censored) for seed, run in arm.items()}
        for arm, own in zip(arms, crossings, strict=True)
    )
    return speedup(baseline, candidate, horizon(logs, axis), confidence)


def horizon(logs: AuditRuns, axis: str) -> float:
    """Return the smallest budget of any finished run."""
    return min(log.costs.budget(axis) for log in logs.finished.all or logs.all)


def ends_above(log: AuditRun, one: Crossing, target: float) -> bool:
    """Return whether a run that reached the target is above it, on average, in the last quarter of its
    evaluations.

    The monotone fit pools such a decline with better values before it.
    """
    last = len(log.curve.steps) - max(len(log.curve.steps) // 4, 1)
    late = np.log(log.curve.measured[last:]).mean() > math.log(target)
    return bool(one.censored != "right" and one.step < log.curve.steps[last] and late)
