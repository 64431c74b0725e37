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
from reports.audit.decision import Verdict, holm
from reports.audit.inputs.read import times_of
from reports.audit.inputs.success_claim import SuccessClaim, read_success_claims
from reports.audit.register import NAME, RegisterEntry, Standing, read_register, standing
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
    standing: Standing = "not registered"
    """When the claim was registered, relative to the runs of its arms."""

    @property
    def p(self) -> float | None:
        """The two-sided p value of a difference equal to the claimed one; None if it is unknown."""
        return None if self.difference is None else self.difference.p_of(self.claim.difference)


def judge_success(
    files: Sequence[Path],
    folders: Sequence[Path],
    register: Path | None = None,
    *,
    protocol: str | None = None,
) -> list[SuccessAudit]:
    """Judge the claims about success of these files on the runs in these folders, as one family.

    Without `register` the register next to each file is used. `protocol` chooses the conditions of
    evaluations. Raises `UserError` for a file or folder that cannot be read, and for an arm or a metric that
    the runs do not have.
    """
    claims = [(file, claim) for file in files for claim in read_success_claims(file)]
    if not claims:
        return []
    if other := next((one for one in folders if not one.is_dir()), None):
        raise UserError(f"claims about success are judged on run directories, and {other} is no folder")
    runs = read_success_runs(folders, protocol)
    entries = {file: read_register(register or file.with_name(NAME)) for file, _ in claims}
    found = [_judged(claim, runs, entries[file]) for file, claim in claims]
    if len(found) < 2:
        return found
    adjusted = holm([1.0 if one.p is None else one.p for one in found])
    return [
        replace(one, adjusted_p=p, adjusted=one.verdict if p <= LEVEL else "inconclusive")
        for one, p in zip(found, adjusted, strict=True)
    ]


def _judged(claim: SuccessClaim, runs: SuccessRuns, entries: Mapping[str, RegisterEntry]) -> SuccessAudit:
    sides = runs.of_claim(claim)
    seeds, left_out = runs.seeds(sides)
    ended = [one for arm in sides for one in arm.runs.values() if one.status in ("done", "failed")]
    found = replace(_compared(claim, sides, seeds), standing=standing(claim, entries, map(times_of, ended)))
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
