"""Audits of claims that are judged before all their runs are done.

Pairs count in the registered order of seeds. At each registered look, the interval accounts for all looks
(reports/stats/sequential.py), so it may be taken whatever the reason for stopping. The first look whose
interval decides the claim ends it. A family of claims shares the error probability by Holm's method at every
look, which is valid for closed tests (Maurer and Bretz, Stat. Biopharm. Res. 5, 2013).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from harness.errors import UserError
from reports.audit.audit import Audit, Look, audit_claim
from reports.audit.early_end import cut_runs
from reports.audit.inputs.claim import Claim, Sequential, Tuning
from reports.audit.inputs.run_log import AuditRuns
from reports.audit.preconditions import Reason
from reports.audit.register import Standing
from reports.stats.speedup import Speedup, with_critical

PATHS = 4000
"""Continuations that a prospect is the mean of."""


@dataclass(frozen=True)
class Ordered:
    """The runs of a sequential claim whose pairs count, in the registered order."""

    seeds: tuple[int, ...]
    logs: AuditRuns
    """The runs of these seeds, and of seeds that set the target."""
    reasons: tuple[Reason, ...] = ()


def audit_sequential(
    claim: Claim,
    logs: AuditRuns,
    tuning: Mapping[str, Tuning] | None = None,
    standing: Standing = "not registered",
    alpha: float | None = None,
) -> Audit:
    """Judge a sequential claim at every look that the runs reach, up to the first that decides it.

    `alpha` is the error probability of all looks together, two-sided; by default 1 - confidence.
    """
    rule, logs = _rule(claim), cut_runs(claim, logs)
    tuning, alpha = tuning or {}, 1 - claim.confidence if alpha is None else alpha
    setters = set(tuning.get(claim.baseline, Tuning()).seeds)
    if claim.step is not None and not setters & logs.baseline.keys():
        raise UserError(
            f"claim {claim.name}: target {claim.target} would move from look to look; give a number, or "
            f"tuning seeds of {claim.baseline} that set it ([tuning.{claim.baseline}] seeds)"
        )
    ordered = in_order(claim, logs, setters)
    looks: list[Look] = []
    found = None
    for n in (look for look in rule.all_looks if look <= len(ordered.seeds)):
        critical = rule.critical(n, alpha)
        interval = partial(with_critical, critical=critical, floor=rule.floor)
        found = audit_claim(claim, first_pairs(claim, ordered.logs, n, tuning), tuning, standing, interval)
        found = _explained(found, critical)
        looks.append(Look(n, critical, found.gain, found.verdict))
        if found.verdict != "inconclusive":
            break
    if found is None:
        found = _too_few(claim, ordered, tuning, standing)
    return _at_last_look(found, ordered, looks, alpha)


def adjust_looks(
    audits: Sequence[Audit], logs: Sequence[AuditRuns], tuning: Mapping[str, Tuning]
) -> list[Audit]:
    """Return the audits of a family of sequential claims at the error probability that Holm leaves each.

    The claims that are decided at alpha / m leave the others alpha / (m - 1), and so on. Looks, intervals and
    prospects are those of that level.
    """
    if len(audits) < 2:
        return list(audits)
    found: dict[int, Audit] = {}
    decided: set[int] = set()
    while len(decided) < len(audits):
        share = len(audits) - len(decided)
        again = {
            number: audit_sequential(
                one.claim, logs[number], tuning, one.standing, (1 - one.claim.confidence) / share
            )
            for number, one in enumerate(audits)
            if number not in decided
        }
        found |= again
        new = {number for number, one in again.items() if one.verdict != "inconclusive"}
        if not new:
            break
        decided |= new
    return [replace(found[number], adjusted=found[number].verdict) for number in range(len(audits))]


def first_pairs(claim: Claim, logs: AuditRuns, n: int, tuning: Mapping[str, Tuning]) -> AuditRuns:
    """Return the runs of the first n registered seeds, and those that set the target."""
    kept = {*_rule(claim).order[:n], *tuning.get(claim.baseline, Tuning()).seeds}
    baseline, candidate = (
        {seed: run for seed, run in arm.items() if seed in kept} for arm in (logs.baseline, logs.candidate)
    )
    return replace(logs, baseline=baseline, candidate=candidate)


def in_order(claim: Claim, logs: AuditRuns, setters: set[int]) -> Ordered:
    """Return the pairs that count: those of the registered seeds, in their order, up to the first gap.

    A seed that is left out, or replaced by another one, would make the remaining pairs a selection.
    """
    rule = _rule(claim)
    arms = {claim.baseline: logs.baseline, claim.candidate: logs.candidate}
    counted: list[int] = []
    for seed in rule.order:
        if any(seed not in arm for arm in arms.values()):
            break
        counted.append(seed)
    notes, reasons = list(logs.notes), []
    later = set(rule.order[len(counted) :])
    beyond = sorted((logs.baseline.keys() | logs.candidate.keys()) - set(rule.order) - setters)
    if len(counted) < len(rule.order) and any(later & arm.keys() for arm in arms.values()):
        gap = rule.order[len(counted)]
        lacking = " and ".join(name for name, arm in arms.items() if gap not in arm)
        both = sorted(seed for seed in later if all(seed in arm for arm in arms.values()))
        if both:
            reasons.append(
                Reason(
                    "order",
                    f"{lacking} has no run of seed {gap}, but later seeds have runs ({_listed(both)}); pairs "
                    "count in the registered order, and a seed cannot be left out or replaced",
                )
            )
    if beyond:
        notes.append(
            f"Seeds that the claim does not register are left out ({_listed(beyond)}): runs added to the "
            f"{rule.max_pairs} pairs of the claim would make its intervals too narrow."
        )
    return Ordered(tuple(counted), replace(logs, notes=tuple(notes)), tuple(reasons))


def prospects(claim: Claim, gain: Speedup | None, n: int, alpha: float) -> dict[int, float]:
    """Return the chance of a decision by each further look, if the pairs so far predict the others.

    Log ratios are drawn as normal with the mean and the standard deviation of the first n pairs. Empty if
    these have no spread or their times are only bounds.
    """
    rule = _rule(claim)
    if gain is None or not gain.error or gain.estimate is None or not _closed(gain):
        return {}
    mean, sd = math.log(gain.estimate), gain.error * math.sqrt(n)
    return decided_by(claim, mean, sd, alpha, rule.max_pairs, given=(n, mean, sd))


def decided_by(
    claim: Claim,
    mean: float,
    sd: float,
    alpha: float,
    most: int,
    given: tuple[int, float, float] = (0, 0.0, 0.0),
) -> dict[int, float]:
    """Return the chance that a claim is decided by each look, for normal log ratios.

    `given` is the number, the mean and the standard deviation of pairs that exist already.
    """
    rule = _rule(claim)
    n0, mean0, sd0 = given
    # A separate generator, so that the same runs give the same words.
    drawn = np.random.default_rng(0).normal(mean, sd, (PATHS, most - n0))
    total, squares = np.full(PATHS, n0 * mean0), np.full(PATHS, max(n0 - 1, 0) * sd0**2 + n0 * mean0**2)
    decided, chances = np.zeros(PATHS, bool), {}
    for column, n in enumerate(range(n0 + 1, most + 1)):
        total, squares = total + drawn[:, column], squares + drawn[:, column] ** 2
        if n not in rule.all_looks:
            continue
        centre = total / n
        spread = np.sqrt(np.maximum(squares - n * centre**2, 0) / (n - 1))
        half = rule.critical(n, alpha) * np.maximum(spread, rule.floor) / math.sqrt(n)
        decided |= _decides(claim, centre - half, centre + half)
        chances[n] = float(decided.mean())
    return chances


def is_futile(claim: Claim, audit: Audit) -> bool:
    """Return whether the registered futility rule ends an undecided claim."""
    rule = _rule(claim)
    if audit.verdict != "inconclusive" or not audit.prospects:
        return False
    return audit.prospects[max(audit.prospects)] < rule.futility


def _decides(claim: Claim, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return where an interval of log ratios supports or refutes the claim."""
    c1, c2 = math.log(claim.low), math.log(claim.high) if math.isfinite(claim.high) else math.inf
    return ((low >= c1) & (high <= c2)) | (high < c1) | (low > c2)


def _explained(found: Audit, critical: float) -> Audit:
    """Return an audit that explains why a look has no interval."""
    gain = found.gain
    if any(reason.name != "interval" for reason in found.reasons) or gain is None or gain.low is not None:
        return found
    why = (
        "this look may spend nothing of the error probability, so its interval is infinite"
        if math.isinf(critical)
        else "all pairs have the same ratio; register a smallest spread (sequential.floor), for example the "
        "noise floor of flowrace audit selftest"
    )
    return replace(found, reasons=(Reason("interval", why),))


def _too_few(claim: Claim, ordered: Ordered, tuning: Mapping[str, Tuning], standing: Standing) -> Audit:
    """Return the audit before the first look, which has no verdict and no interval."""
    n, first = len(ordered.seeds), _rule(claim).all_looks[0]
    hidden = partial(with_critical, critical=math.inf)
    found = audit_claim(claim, first_pairs(claim, ordered.logs, n, tuning), tuning, standing, hidden)
    reason = Reason("pairs", f"{n} {'pair' if n == 1 else 'pairs'} of seeds; the first look is at {first}")
    others = [own for own in found.reasons if own.name not in ("pairs", "interval")]
    return replace(found, verdict="inconclusive", reasons=(*others, reason))


def _at_last_look(found: Audit, ordered: Ordered, looks: Sequence[Look], alpha: float) -> Audit:
    """Return an audit with its looks, the prospects of an undecided claim, and what is wrong with the order
    of seeds, which does not change a decision that was made before."""
    reasons, notes = found.reasons, found.notes
    if found.verdict == "inconclusive" and ordered.reasons:
        reasons = (*ordered.reasons, *(own for own in reasons if own.name != "interval"))
    elif ordered.reasons:
        notes = (*notes, *(f"After the decision: {own.text}." for own in ordered.reasons))
    later = len(ordered.seeds) - looks[-1].n if looks else 0
    if found.verdict != "inconclusive" and later:
        notes = (*notes, f"The claim was decided with {looks[-1].n} pairs; {later} later ones do not count.")
    ahead: dict[int, float] = {}
    if found.verdict == "inconclusive" and looks:
        ahead = prospects(found.claim, looks[-1].gain, looks[-1].n, alpha)
    return replace(found, reasons=reasons, notes=notes, looks=tuple(looks), prospects=ahead, more_pairs=None)


def _closed(gain: Speedup) -> bool:
    return gain.low is not None and gain.low > 0 and gain.high is not None and math.isfinite(gain.high)


def _rule(claim: Claim) -> Sequential:
    if claim.sequential is None:
        raise ValueError(f"claim {claim.name} has no [claim.sequential]")
    return claim.sequential


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
