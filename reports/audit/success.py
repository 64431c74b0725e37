"""The verdict on claims about success, from the result at each start in the last evaluation of every run.

The difference of two arms is averaged over training seeds and starts, both crossed, with the interval of
reports/stats/success.py. A claim is supported if all of the interval is above the claimed difference, and
refuted if none of it is. Networks of one training seed are also compared by the exact McNemar test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from reports.audit.decision import Verdict, holm
from reports.audit.inputs.success_claim import SuccessClaim
from reports.audit.success_runs import LeftOut, SuccessRuns, read_success_runs, results, unlike
from reports.race.arms import RaceArm
from reports.stats.success import Levels, Pairs, difference_levels, levels_of, paired, success_levels

LEVEL = 0.05


@dataclass(frozen=True)
class SuccessAudit:
    """The verdict on one claim, and what it rests on."""

    claim: SuccessClaim
    verdict: Verdict
    reason: str
    seeds: tuple[int, ...] = ()
    candidate: Levels | None = None
    baseline: Levels | None = None
    difference: Levels | None = None
    """The candidate minus the baseline, and minus their difference in the stage `beyond`."""
    pairs: Mapping[int, Pairs] = field(default_factory=dict)
    """The candidate's network against the baseline's, by training seed."""
    adjusted_p: float | None = None
    adjusted: Verdict | None = None
    """The verdict after Holm's adjustment over the claims of one audit; None for a single claim."""
    left_out: tuple[LeftOut, ...] = ()
    """The training seeds that are not compared."""


def judge_success(
    claims: Sequence[SuccessClaim], folders: Sequence[Path], *, protocol: str | None = None
) -> list[SuccessAudit]:
    """Judge claims about success on the runs in these folders, as one family.

    `protocol` chooses the conditions of evaluations. Raises `UserError` for an arm or a metric that the runs
    do not have.
    """
    runs = read_success_runs(folders, protocol)
    found = [_judged(claim, runs) for claim in claims]
    if len(found) < 2:
        return found
    adjusted = holm([_p(one) for one in found])
    return [
        replace(one, adjusted_p=p, adjusted=one.verdict if p <= LEVEL else "inconclusive")
        for one, p in zip(found, adjusted, strict=True)
    ]


def _judged(claim: SuccessClaim, runs: SuccessRuns) -> SuccessAudit:
    sides = runs.of_claim(claim)
    seeds, left_out = runs.seeds(sides)
    found = _compared(claim, sides, seeds)
    if not left_out:
        return found
    reason = f"{found.reason}; left out: {', '.join(map(str, left_out))}"
    return replace(found, reason=reason, left_out=left_out)


def _compared(claim: SuccessClaim, sides: Sequence[RaceArm], seeds: tuple[int, ...]) -> SuccessAudit:
    if len(seeds) < claim.min_pairs:
        reason = f"the arms share {len(seeds)} finished training seeds, and the claim needs {claim.min_pairs}"
        return SuccessAudit(claim, "inconclusive", reason, seeds)
    records = [[arm.runs[seed] for seed in seeds] for arm in sides]
    if why := unlike([one for arm in records for one in arm], claim):
        return SuccessAudit(claim, "inconclusive", why, seeds)
    a, b = (np.array([results(one, claim.metric) for one in arm]) for arm in records)
    difference = difference_levels(a, b)
    if claim.beyond:
        stage = [np.array([results(one, claim.beyond) for one in arm]).astype(float) for arm in records]
        difference = levels_of((a.astype(float) - b) - (stage[0] - stage[1]))
    verdict, reason = _decided(claim, difference)
    levels = success_levels(a), success_levels(b)
    pairs = {seed: paired(a[row], b[row]) for row, seed in enumerate(seeds)}
    return SuccessAudit(claim, verdict, reason, seeds, *levels, difference, pairs)


def _decided(claim: SuccessClaim, difference: Levels) -> tuple[Verdict, str]:
    """Return the verdict of an interval, and its position in words."""
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "inconclusive", "there is no interval"
    ends = f"the interval {low:+.3f} to {high:+.3f}"
    if low > claim.difference:
        return "supported", f"{ends} is above {claim.difference:g}"
    if high <= claim.difference:
        return "refuted", f"{ends} is not above {claim.difference:g}"
    return "inconclusive", f"{ends} contains {claim.difference:g}"


def _p(found: SuccessAudit) -> float:
    """Return the two-sided p value of a difference equal to the claimed one; 1 if it is unknown."""
    levels = found.difference
    return 1.0 if levels is None else levels.p_of(found.claim.difference)
