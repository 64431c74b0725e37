"""The studies of cheap controls: every control is held against every questioned method, under its label."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reports.audit.inputs.claim import read_claims
from reports.race.arms import labels_of, trajectory_fields
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study

CLAIMS = Path(__file__).parents[2] / "reports/claims/examples"
QUESTIONED = {"repa (encoder = local:small)", "self_flow (mask_ratio = 0.25)"}


@pytest.mark.parametrize(
    ("study", "claims", "seeds"),
    [("controls", "controls-on-digits.toml", 5), ("controls-mnist", "controls-on-mnist.toml", 3)],
)
def test_claims_hold_each_method_against_each_arm_of_the_study(study: str, claims: str, seeds: int) -> None:
    runs = make_plan(load_study(study)).runs
    fields = [trajectory_fields(run.spec.model_dump(mode="json")) for run in runs]
    labels = set(labels_of({json.dumps(one, sort_keys=True): one for one in fields}).values())
    assert len(runs) == seeds * len(labels) and labels > QUESTIONED
    found = read_claims(CLAIMS / claims)
    pairs = {(claim.candidate, claim.baseline) for claim in found}
    assert pairs == {(one, other) for one in QUESTIONED for other in labels - QUESTIONED}
    assert len({claim.name for claim in found}) == len(found)
    assert {claim.min_pairs for claim in found} == {seeds}
