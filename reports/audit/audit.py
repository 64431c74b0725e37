"""The audit of one claim: its two arms of runs, and the verdict with its reasons.

    curve -> sustained crossing of the target -> time on each axis -> speed-up with its interval -> verdict

This module puts the steps of curves.py, speedup.py and decision.py in order. It adds the preconditions
(preconditions.py), the checks of the curves (curve_shape.py, survival.py) and the number of runs that would
decide the claim (power.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.errors import UserError
from harness.records.targets import TargetRule, target_value
from reports.audit.curve_shape import Dual, by_target, dual_speedup, horizon, slopes, speedup_between
from reports.audit.decision import Verdict, decide, holm, p_values
from reports.audit.inputs.claim import Claim, Tuning
from reports.audit.inputs.run_log import AuditRun, AuditRuns, Places
from reports.audit.preconditions import Reason, clock_problem, failed_preconditions, target_reasons
from reports.audit.register import Standing
from reports.stats.crossing import Crossing, crossing, first_crossing
from reports.stats.curves import AXES, CLOCK_AXES
from reports.stats.mlperf import Aggregate, aggregate
from reports.stats.power import detectable, pairs_needed
from reports.stats.speedup import Speedup, Time, cut

Crossings = tuple[Mapping[int, Crossing], Mapping[int, Crossing]]
"""The crossings of the baseline and of the candidate, by seed."""


@dataclass(frozen=True)
class Look:
    """One look at a claim that is judged before all its runs are done."""

    n: int
    """Number of pairs."""
    critical: float
    gain: Speedup | None
    """The speed-up on the claim's axis, with the interval that accounts for all looks."""
    verdict: Verdict


@dataclass(frozen=True)
class Audit:
    """The verdict on one claim, and everything that it rests on."""

    claim: Claim
    verdict: Verdict
    reasons: tuple[Reason, ...]
    logs: AuditRuns
    """The runs that count: pairs, if the arms share seeds."""
    target: float | None = None
    """None if it could not be computed, or if values cannot be compared."""
    crossings: Crossings | None = None
    """Sustained crossings of both arms."""
    gains: Mapping[str, Speedup] | None = None
    """Speed-ups of sustained crossings, by axis, without axes that were not logged or cannot be compared."""
    first: Speedup | None = None
    """The speed-up of first crossings, on the claim's axis."""
    dual: Dual | None = None
    curve: tuple[tuple[float, Speedup], ...] = ()
    """Speed-up by target, on the claim's axis."""
    slopes: Mapping[str, float | None] | None = None
    """d log metric / d log step at the target, by arm."""
    more_pairs: int | None = None
    """The number of further pairs that decide the claim with 80 % power, if the measured values are true.

    0 if the claim is decided, None if no number of pairs decides it."""
    adjusted: Verdict | None = None
    """The verdict after Holm's adjustment over a family of claims; None for a single claim."""
    adjusted_p: float | None = None
    standing: Standing = "not registered"
    looks: tuple[Look, ...] = ()
    """The looks of a sequential claim so far, up to the one that decided it."""
    alpha: float | None = None
    """The error probability of all looks together, two-sided; None for a claim that is judged once."""
    prospects: Mapping[int, float] = field(default_factory=dict)
    """Number of pairs of each further look -> the chance of a decision by then, as the pairs so far predict
    it."""
    notes: tuple[str, ...] = ()
    names: Mapping[str, str] | None = None
    """Shown names by method or arm label."""

    def shown(self, arm: str) -> str:
        """Return the shown name of an arm of the claim."""
        return (self.names or {}).get(arm, arm)

    @property
    def gain(self) -> Speedup | None:
        """The speed-up on the claim's axis."""
        return self.gains.get(self.claim.axis) if self.gains else None

    @property
    def n_pairs(self) -> int:
        return min(len(self.logs.baseline), len(self.logs.candidate))

    @property
    def detectable(self) -> float | None:
        """The smallest factor that these runs distinguish from 1 with 80 % power, if judged once."""
        if self.claim.sequential is not None or self.gain is None or self.gain.error is None:
            return None
        return detectable(self.gain.error, self.gain.degrees, self.claim.confidence)

    @property
    def p(self) -> float | None:
        """The smaller of the two-sided p-values of support and refutation; 1 if a precondition fails.

        None for a claim with several looks, whose p-value would be that of a single one.
        """
        if self.claim.sequential is not None:
            return None
        if self.gain is None or any(reason.name != "interval" for reason in self.reasons):
            return 1.0
        return min(p_values(self.claim, self.gain))

    def crossed(self) -> list[tuple[AuditRun, Crossing]]:
        """Return the sustained crossings of both arms."""
        pairs = zip(_arms(self.logs), self.crossings or (), strict=False)
        return [(log, own[seed]) for arm, own in pairs for seed, log in arm.items()]

    def mlperf(self) -> dict[str, Aggregate]:
        """Return MLPerf's aggregates of both arms on the claim's axis; empty without crossings."""
        if self.crossings is None:
            return {}
        axis, names = self.claim.axis, (self.claim.baseline, self.claim.candidate)
        rule = self.claim.sequential
        # Runs of later pairs are none of the look that decided.
        seeds = None if rule is None or not self.looks else rule.order[: self.looks[-1].n]

        def count(places: Places, name: str) -> int:
            return sum(arm == name and (seeds is None or seed in seeds) for arm, seed in places)

        return {
            name: aggregate(
                [Time(run.costs.at(axis, own[seed].step), own[seed].censored) for seed, run in arm.items()],
                lost=count(self.logs.lost, name),
                missing=count(self.logs.missing, name),
            )
            for name, arm, own in zip(names, _arms(self.logs), self.crossings, strict=True)
        }

    def times(self) -> dict[str, list[Time]]:
        """Return times on the claim's axis, cut at the horizon, by arm; empty without crossings."""
        if self.crossings is None:
            return {}
        axis, end = self.claim.axis, horizon(self.logs, self.claim.axis)
        arms = (self.logs.baseline, self.logs.candidate)
        return {
            name: [
                cut(Time(log.costs.at(axis, own[seed].step), own[seed].censored), end)
                for seed, log in arm.items()
            ]
            for name, arm, own in zip(
                (self.claim.baseline, self.claim.candidate), arms, self.crossings, strict=True
            )
        }


def audit_claim(
    claim: Claim,
    logs: AuditRuns,
    tuning: Mapping[str, Tuning] | None = None,
    standing: Standing = "not registered",
    interval: Callable[[Speedup], Speedup] | None = None,
) -> Audit:
    """Judge a claim by runs. Raises `UserError` if the logs do not record the claim's axis.

    `interval` replaces the intervals of all axes, for a claim that is looked at more than once.
    """
    tuning = tuning or {}
    tuned_on = set(tuning.get(claim.baseline, Tuning()).seeds)
    setters = [log for seed, log in logs.baseline.items() if seed in tuned_on]
    tuners = frozenset((claim.baseline, seed) for seed in tuned_on)
    judged = matched(
        replace(
            logs,
            baseline={s: log for s, log in logs.baseline.items() if s not in tuned_on},
            lost=logs.lost - tuners,
            missing=logs.missing - tuners,
        )
    )
    reasons = failed_preconditions(claim, judged, tuning, setters if claim.step is not None else ())
    empty = Audit(claim, "inconclusive", tuple(reasons), judged, standing=standing, notes=judged.notes)
    if not judged.baseline or not judged.candidate or any(reason.name == "protocol" for reason in reasons):
        return empty
    missing = [log for log in judged.all if claim.axis not in log.costs.totals]
    if missing:
        raise UserError(f"the claim is on {claim.axis}, which {missing[0].source} does not record")
    # A run that ended early has no horizon in seconds, and its reason is among those of the audit.
    if not all(log.costs.knows(claim.axis) for log in judged.all):
        return empty
    target = target_of(claim, setters or list(judged.baseline.values()))
    if target is None:
        text = f"no run of {claim.baseline} was evaluated on both sides of step {claim.step}"
        return replace(empty, reasons=(*reasons, Reason("target", text)))
    return _measured(replace(empty, target=target), target, interval)


def _measured(found: Audit, target: float, interval: Callable[[Speedup], Speedup] | None = None) -> Audit:
    """Return the audit with all fields that need a target."""
    claim, logs = found.claim, found.logs
    crossings = crossed(logs, target)
    gains = gains_of(logs, crossings, claim.confidence)
    if interval is not None:
        gains = {axis: interval(gain) for axis, gain in gains.items()}
    by_arm = {claim.baseline: list(crossings[0].values()), claim.candidate: list(crossings[1].values())}
    own, reasons = gains.get(claim.axis), [*found.reasons, *target_reasons(claim, target, by_arm)]
    if own is not None and own.estimate is None and not any(reason.name == "target" for reason in reasons):
        reasons.append(Reason("censored", f"no pair has a time in {claim.axis} within the smallest budget"))
    verdict: Verdict = "inconclusive" if reasons or own is None else decide(claim, own)
    first = tuple(
        {seed: first_crossing(log.curve, target) for seed, log in arm.items()} for arm in _arms(logs)
    )
    arms = zip((claim.baseline, claim.candidate), _arms(logs), crossings, strict=True)
    return replace(
        found,
        verdict=verdict,
        reasons=tuple(reasons) or (interval_reason(claim, own, verdict),),
        crossings=crossings,
        gains=gains,
        first=speedup_between(logs, claim.axis, first, claim.confidence),
        dual=dual_speedup(logs, claim.confidence),
        curve=tuple(by_target(logs, claim.axis, claim.confidence)),
        slopes={name: slopes(arm, own) for name, arm, own in arms},
        more_pairs=more_pairs(claim, own, verdict, reasons),
    )


def adjust_family(audits: Sequence[Audit]) -> list[Audit]:
    """Return the audits of several claims with adjusted p-values (Holm).

    A verdict that does not survive the adjustment becomes inconclusive.
    """
    if len(audits) < 2:
        return list(audits)
    adjusted = holm([one.p for one in audits if one.p is not None])
    return [
        replace(one, adjusted_p=p, adjusted=one.verdict if p <= 1 - one.claim.confidence else "inconclusive")
        for one, p in zip(audits, adjusted, strict=True)
    ]


def matched(logs: AuditRuns) -> AuditRuns:
    """Return the runs of shared seeds, or all runs if the arms share fewer than two seeds (Welch)."""
    shared = logs.baseline.keys() & logs.candidate.keys()
    if len(shared) < min(2, len(logs.baseline), len(logs.candidate)) or not shared:
        return logs
    left_out = sorted((logs.baseline.keys() | logs.candidate.keys()) - shared)
    note = f"Seeds that only one arm has are left out: {', '.join(map(str, left_out))}."
    return replace(
        logs,
        baseline={seed: log for seed, log in logs.baseline.items() if seed in shared},
        candidate={seed: log for seed, log in logs.candidate.items() if seed in shared},
        notes=(*logs.notes, note) if left_out else logs.notes,
    )


def target_of(claim: Claim, baseline: Sequence[AuditRun]) -> float | None:
    """Return the value to reach; None if no run covers the step of `baseline@STEP`.

    For `baseline@STEP` it is the median over runs of the baseline's fitted metric at that step. AlgoPerf sets
    its targets by the same rule.
    """
    if claim.step is None:
        return float(claim.target)
    fits = [(log.curve.steps, log.curve.fitted) for log in baseline]
    covered = [fit for fit in fits if fit[0][0] <= claim.step <= fit[0][-1]]
    return target_value(TargetRule(step=claim.step), covered)


def crossed(logs: AuditRuns, target: float) -> Crossings:
    """Return the sustained crossings of both arms."""
    base, cand = ({seed: crossing(log.curve, target) for seed, log in arm.items()} for arm in _arms(logs))
    return base, cand


def gains_of(logs: AuditRuns, crossings: Crossings, confidence: float) -> dict[str, Speedup]:
    """Return speed-ups by axis, for the axes that every run records.

    Clock axes are left out if the runs used different hardware, or if one ended early.
    """
    recorded = [axis for axis in AXES if all(axis in log.costs.totals for log in logs.all)]
    if clock_problem(logs):
        recorded = [axis for axis in recorded if axis not in CLOCK_AXES]
    return {axis: speedup_between(logs, axis, crossings, confidence) for axis in recorded}


def interval_reason(claim: Claim, own: Speedup | None, verdict: Verdict) -> Reason:
    """Return the position of the interval: the reason of a verdict if no precondition failed."""
    if own is None or own.low is None or own.high is None:
        return Reason("interval", f"there is no interval in {claim.axis}")
    bounds = f"{claim.low:.3g}x" + ("" if math.isinf(claim.high) else f" to {claim.high:.3g}x")
    needed = f"what the claim needs ({bounds})"
    where = {
        "supported": f"is within {needed}",
        "refuted": f"is outside {needed}",
        "inconclusive": "contains factors that satisfy the claim and factors that do not; "
        f"the claim needs {bounds}",
    }
    if verdict == "supported" and math.isinf(claim.high):
        return Reason("interval", f"its low end is at or above {needed}")
    if verdict == "refuted" and own.high < claim.low:
        return Reason("interval", f"its high end is below {needed}")
    return Reason("interval", f"the interval {where[verdict]}")


def more_pairs(claim: Claim, own: Speedup | None, verdict: Verdict, reasons: Sequence[Reason]) -> int | None:
    """Return `Audit.more_pairs`.

    It is None, too, if another precondition fails or an end would stay open with any n.
    """
    if verdict != "inconclusive":
        return 0
    if (
        own is None
        or own.estimate is None
        or not own.error
        or any(reason.name != "pairs" for reason in reasons)
    ):
        return None
    fulfils = claim.low <= own.estimate <= claim.high
    open_low, open_high = own.low == 0, own.high is not None and math.isinf(own.high)
    if fulfils:
        blocked = open_low or (open_high and not math.isinf(claim.high))
        distance = min(math.log(own.estimate / claim.low), math.log(claim.high / own.estimate))
    else:
        below = own.estimate < claim.low
        blocked = open_high if below else open_low
        distance = math.log(claim.low / own.estimate) if below else math.log(own.estimate / claim.high)
    if blocked:
        return None
    sd = own.error * math.sqrt(own.n)
    needed = pairs_needed(distance, sd, claim.confidence, paired=own.paired)
    return None if needed is None else max(needed, claim.min_pairs, own.n + 1) - own.n


def _arms(logs: AuditRuns) -> tuple[Mapping[int, AuditRun], Mapping[int, AuditRun]]:
    return logs.baseline, logs.candidate
