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

from harness.errors import UserError
from harness.records.record import Record, find_records
from reports.audit.decision import Verdict, holm
from reports.audit.inputs.success_claim import SuccessClaim
from reports.race.arms import RaceArm, arms_of, find_arm
from reports.race.protocols import protocols_of
from reports.race.study_folder import split_by_plan
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


def judge_success(claims: Sequence[SuccessClaim], folders: Sequence[Path]) -> list[SuccessAudit]:
    """Judge claims about success on the runs in these folders, as one family.

    Raises `UserError` for an arm or a metric that the runs do not have.
    """
    arms = arms_of(split_by_plan(find_records(*folders), folders)[0])
    found = [_judged(claim, arms) for claim in claims]
    if len(found) < 2:
        return found
    adjusted = holm([_p(one) for one in found])
    return [
        replace(one, adjusted_p=p, adjusted=one.verdict if p <= LEVEL else "inconclusive")
        for one, p in zip(found, adjusted, strict=True)
    ]


def _judged(claim: SuccessClaim, arms: Sequence[RaceArm]) -> SuccessAudit:
    sides = [find_arm(arms, name, "arm of the claim") for name in (claim.candidate, claim.baseline)]
    seeds = tuple(sorted(set.intersection(*(_finished(arm) for arm in sides))))
    if len(seeds) < claim.min_pairs:
        reason = f"the arms share {len(seeds)} finished training seeds, and the claim needs {claim.min_pairs}"
        return SuccessAudit(claim, "inconclusive", reason, seeds)
    records = [[arm.runs[seed] for seed in seeds] for arm in sides]
    protocols = {key for arm in records for one in arm for key in protocols_of(one, claim.metric)}
    if len(protocols) > 1:
        return SuccessAudit(
            claim, "inconclusive", "the runs were evaluated under different protocols of success", seeds
        )
    a, b = (np.array([results(one, claim.metric) for one in arm]) for arm in records)
    difference = difference_levels(a, b)
    if claim.beyond:
        stage = [np.array([results(one, claim.beyond) for one in arm]).astype(float) for arm in records]
        difference = levels_of((a.astype(float) - b) - (stage[0] - stage[1]))
    verdict, reason = _decided(claim, difference)
    levels = success_levels(a), success_levels(b)
    pairs = {seed: paired(a[row], b[row]) for row, seed in enumerate(seeds)}
    return SuccessAudit(claim, verdict, reason, seeds, *levels, difference, pairs)


def _finished(arm: RaceArm) -> set[int]:
    return {seed for seed, record in arm.runs.items() if record.status == "done"}


def results(record: Record, metric: str) -> list[bool]:
    """Return the result at each start in the last evaluation of a run, never in its best one.

    Raises `UserError` if that evaluation does not have the metric.
    """
    last = record.of("eval")[-1]
    row = last["metrics"].get(metric, {})
    if not row.get("successes"):
        raise UserError(
            f"{record.path} has no {metric} at its last evaluation (step {last['step']}); measure it: "
            f"flowrace eval {record.path} --metrics {metric.partition('/')[0]} --steps last"
        )
    return [one == "1" for one in row["successes"]]


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
