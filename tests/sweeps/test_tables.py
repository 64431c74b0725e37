"""The tables of a sweep: what they count, against counting every run for itself."""

from __future__ import annotations

from pathlib import Path

import harness.costs.flops
from sweeps.plan.budget import count_flops
from sweeps.plan.plan import plan
from sweeps.plan.study import load_study

STUDY = """
name = "counted"
base = "digits"
[axes]
seed = [0, 1]
method = [{ name = "flow" }, { name = "self_flow" }, { name = "self_flow", mask_ratio = 0.0 }]
"train.learning_rate" = [1e-4, 1e-3]
"train.steps" = [2, 3]
[set]
"train.batch_size" = 4
"""


def test_every_run_has_the_count_of_its_own_spec_and_rates_and_seeds_are_not_counted_again(
    tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    cells = plan(load_study(str(tmp_path / "study.toml")))
    alone = {cell.id: harness.costs.flops.count_spec(cell.spec).total for cell in cells}

    calls, count = [], harness.costs.flops.count_spec
    monkeypatch.setattr(harness.costs.flops, "count_spec", lambda spec: calls.append(spec) or count(spec))
    assert count_flops(cells) == alone
    assert len(calls) == 3 * 2  # method settings x steps
