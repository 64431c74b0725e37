"""The early end of runs in an audit: a claim with `until = "decided"` judges every run up to that end.

The end is a function of the claim and of the evaluations alone. So runs that ended there, runs that were
continued later, and runs that never had the rule give the same times. A run that has not crossed its target
for good counts with all its evaluations, and is censored at the horizon only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from harness.records.early_end import crossed_for_good
from reports.audit.inputs.claim import Claim
from reports.audit.inputs.run_log import AuditRun, AuditRuns


def cut_runs(claim: Claim, logs: AuditRuns) -> AuditRuns:
    """Return the runs with their curves up to the early end that the claim registers; those of another claim
    as they are."""
    if claim.end_rule is None:
        return logs
    return replace(logs, baseline=_cut(claim, logs.baseline), candidate=_cut(claim, logs.candidate))


def _cut(claim: Claim, arm: Mapping[int, AuditRun]) -> dict[int, AuditRun]:
    return {seed: _cut_run(claim, run) for seed, run in arm.items()}


def _cut_run(claim: Claim, run: AuditRun) -> AuditRun:
    rule = claim.end_rule
    assert rule is not None
    values, target = run.curve.measured.tolist(), rule.targets[0][1]
    place = crossed_for_good(values, target, rule.patience, rule.margin)
    return run if place is None else replace(run, curve=run.curve.until(place), cut=True)
