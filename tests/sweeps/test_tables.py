"""The FLOPs in the tables of a sweep, against counts of every run."""

from __future__ import annotations

from pathlib import Path

import pytest

import harness.costs.flops
from sweeps.plan.budget import count_flops
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study

STUDY = """
name = "counted"
base = "digits"
[axes]
seed = [0, 1]
method = [{ name = "flow" }, { name = "self_flow" }, { name = "self_flow", mask_ratio = 0.0 }]
"train.learning_rate" = [1e-4, 1e-3]
"train.batch_size" = [4, 8]
[set]
"train.steps" = 3
"""


@pytest.mark.slow
def test_flops_are_those_of_each_spec_and_counted_once_per_architecture(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    planned_runs = make_plan(load_study(str(tmp_path / "study.toml"))).runs
    alone = {planned.id: harness.costs.flops.count_spec(planned.spec).total for planned in planned_runs}

    calls, count = [], harness.costs.flops.count_spec
    monkeypatch.setattr(harness.costs.flops, "count_spec", lambda spec: calls.append(spec) or count(spec))
    assert count_flops(planned_runs) == alone
    # Method settings times batch sizes.
    assert len(calls) == 3 * 2
