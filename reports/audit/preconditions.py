"""The preconditions of a comparison: each failure makes an audit inconclusive, whatever its interval.

    failed        a run failed before its first evaluation, so the remaining runs are a selection
    ended         a run ended early by a rule that the claim does not register, or before it held
    record        the record of a run lost events, its spec was altered, or its checkpoint is another run's
    pairs         there are fewer pairs of seeds than the claim requires
    protocol      evaluations used different protocols (the differing fields are named)
    hardware      a claim in seconds, and the arms ran on different machines or one after the other
    tuning        tuning budgets, in trials or FLOPs, are unequal or recorded for one arm only
    reused seeds  the candidate is judged on seeds that it was tuned on
    aligned       a run was aligned to the network that computes the metric
    rising        the metric rises during training, so it is not a distance
    units         steps or costs of the runs differ so much that their units must differ
    target        at their last evaluation all runs are above the target, or all start below it
    bracket       the steps of the evaluations around a crossing differ by more than a factor of 2
    censored      no pair has a time on the claim's axis

Unequal evaluation grids are no obstacle: they would matter only for raw first hits, which this package does
not use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.records.evaluations import falling
from reports.audit.inputs.claim import Claim, Tuning
from reports.audit.inputs.run_log import AuditRun, AuditRuns
from reports.race.comparability import one_after_another, unknown_seconds
from reports.stats.crossing import Crossing
from reports.stats.curves import CLOCK_AXES, rises

WIDEST_BRACKET = 2.0
UNIT_FACTOR = 100.0


@dataclass(frozen=True)
class Reason:
    """One reason for a verdict: a name from a fixed list, and a sentence."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def failed_preconditions(
    claim: Claim, logs: AuditRuns, tuning: Mapping[str, Tuning], setters: Sequence[AuditRun] = ()
) -> list[Reason]:
    """Return the reasons that do not depend on the target.

    `setters` are runs that set the target and are not judged.
    """
    found = [
        Reason("failed", " ".join(logs.unseen)) if logs.unseen else None,
        _ended(claim, [*logs.all, *setters]),
        _records([*logs.all, *setters]),
        _pairs(claim, logs),
        protocol_reason([*logs.all, *setters]),
        hardware_reason(logs) if claim.axis in CLOCK_AXES else None,
        _tuning(claim, tuning),
        _reused(claim, logs, tuning),
        _aligned(claim, logs.all),
        _rising(claim, logs.all),
        _units(logs.all),
    ]
    return [reason for reason in found if reason is not None]


def target_reasons(claim: Claim, target: float, crossings: Mapping[str, Sequence[Crossing]]) -> list[Reason]:
    """Return the reasons found in the crossings, given by arm."""
    flat = [(name, one) for name, own in crossings.items() for one in own]
    for side, where in (("right", "below every value reached"), ("left", "above every first evaluation")):
        if all(one.censored == side for _, one in flat):
            return [Reason("target", f"{claim.metric} <= {target:.6g} is {where}, in both arms")]
    name, widest = max(flat, key=lambda pair: pair[1].bracket)
    if widest.bracket > WIDEST_BRACKET * (1 + 1e-9):
        text = (
            f"a run of {name} crosses the target, at step {widest.step:.0f}, between evaluations whose steps "
            f"differ by {widest.bracket:.2g}x; at most {WIDEST_BRACKET:g}x is allowed"
        )
        return [Reason("bracket", text)]
    return []


def hardware_reason(logs: AuditRuns) -> Reason | None:
    """Return why seconds of these runs cannot be compared.

    None if they can, or if the logs do not record hardware.
    """
    machines = sorted({machine for log in logs.all for machine in log.machines})
    if len(machines) > 1:
        return Reason("hardware", f"the runs used different hardware ({'; '.join(machines)})")
    arms = {"baseline": logs.baseline, "candidate": logs.candidate}
    if one_after_another({name: [log.started for log in arm.values()] for name, arm in arms.items()}):
        return Reason(
            "hardware", "all runs of one arm began before any run of the other: they were not interleaved"
        )
    return None


def clock_problem(logs: AuditRuns) -> str:
    """Return why seconds of these runs are not compared, in words; empty if they are."""
    reason = hardware_reason(logs)
    return reason.text if reason is not None else unknown_seconds(log.costs for log in logs.all)


def _ended(claim: Claim, logs: Sequence[AuditRun]) -> Reason | None:
    """Return why runs that ended early cannot be judged: what the claim needs of them was not trained."""
    lost = [(log, log.early) for log in logs if log.early is not None and not log.cut]
    if not lost:
        return None
    log, end = lost[0]
    needs = f"step {end.steps}" if claim.end_rule is None else str(claim.end_rule)
    return Reason(
        "ended",
        f"{len(lost)} {'run' if len(lost) == 1 else 'runs'} ended early, after {end.reason}, but the claim "
        f"needs {needs}; flowrace extend --steps {end.steps} continues them ({log.source})",
    )


def _records(logs: Sequence[AuditRun]) -> Reason | None:
    altered = [f"{log.method} seed {log.seed}: {'; '.join(log.misfits)}" for log in logs if log.misfits]
    return Reason("record", ". ".join(altered)) if altered else None


def _pairs(claim: Claim, logs: AuditRuns) -> Reason | None:
    n = min(len(logs.baseline), len(logs.candidate))
    if n >= claim.min_pairs:
        return None
    return Reason(
        "pairs", f"{n} {'pair' if n == 1 else 'pairs'} of seeds, but the claim needs {claim.min_pairs}"
    )


def protocol_reason(logs: Sequence[AuditRun]) -> Reason | None:
    """Return why values of these runs cannot be compared.

    None if they can, or if no log records its protocol.
    """
    recorded = {name: fields for log in logs for name, fields in log.protocols.items()}
    if not recorded:
        return None
    if any(not log.protocols or "" in log.protocols for log in logs):
        return Reason("protocol", "some evaluations record a protocol and others do not")
    if len(recorded) == 1:
        return None
    fields = differing_settings(list(recorded.values()))
    return Reason(
        "protocol",
        f"evaluations differ in {'; '.join(fields) or 'their hash (' + ', '.join(sorted(recorded)) + ')'}",
    )


def differing_settings(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return `field (value, value)` for each field in which flat tables differ."""
    names = sorted({name for table in tables for name in table})
    values = {name: list(dict.fromkeys(str(table.get(name, "none")) for table in tables)) for name in names}
    return [f"{name} ({', '.join(sorted(own))})" for name, own in values.items() if len(own) > 1]


def _tuning(claim: Claim, tuning: Mapping[str, Tuning]) -> Reason | None:
    own = {name: tuning.get(name, Tuning()) for name in (claim.baseline, claim.candidate)}
    for field in ("trials", "flops"):
        spent = {name: getattr(one, field) for name, one in own.items()}
        if len(set(spent.values())) > 1:
            budgets = ", ".join(
                f"{name} {'not recorded' if n is None else format(n, 'g')}" for name, n in spent.items()
            )
            return Reason("tuning", f"unequal tuning budgets in {field}: {budgets}")
    return None


def _reused(claim: Claim, logs: AuditRuns, tuning: Mapping[str, Tuning]) -> Reason | None:
    reused = sorted(logs.candidate.keys() & set(tuning.get(claim.candidate, Tuning()).seeds))
    if not reused:
        return None
    seeds = ", ".join(map(str, reused))
    return Reason("reused seeds", f"{claim.candidate} was tuned on seeds that now judge it: {seeds}")


def _aligned(claim: Claim, logs: Sequence[AuditRun]) -> Reason | None:
    arms = sorted({log.method for log in logs if log.aligned})
    if not arms:
        return None
    return Reason(
        "aligned",
        f"{', '.join(arms)} aligned to the network that computes {claim.metric}, "
        "which rewards the alignment itself",
    )


def _rising(claim: Claim, logs: Sequence[AuditRun]) -> Reason | None:
    if not rises([log.curve for log in logs]):
        return None
    return Reason(
        "rising",
        f"{claim.metric} rises during training in every run; an audit needs a metric that falls"
        + (f": write {falling(claim.metric)}" if falling(claim.metric) != claim.metric else ""),
    )


def _units(logs: Sequence[AuditRun]) -> Reason | None:
    """Compare the last step and the cost per step on each axis between runs."""
    sizes = {"step": [(log.curve.steps[-1], log) for log in logs if not log.failed]}
    for axis in ("images", "flops", "seconds", "gpu_seconds"):
        sizes[f"{axis} of a step"] = [
            (log.costs.totals[axis][-1] / log.costs.totals["steps"][-1], log)
            for log in logs
            if axis in log.costs.totals
        ]
    for what, own in sizes.items():
        if own and (top := max(own, key=_size))[0] > UNIT_FACTOR * (bottom := min(own, key=_size))[0]:
            values = f"{top[1].method} has {top[0]:.3g}, {bottom[1].method} {bottom[0]:.3g}"
            return Reason(
                "units",
                f"the {what} differs by more than a factor of {UNIT_FACTOR:g} between runs ({values}); "
                "use one unit per column",
            )
    return None


def _size(pair: tuple[float, AuditRun]) -> float:
    return float(np.asarray(pair[0]))
