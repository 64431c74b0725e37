"""The budget of a study: a dry run reports a plan that exceeds it, and a sweep rejects it, exact to the
FLOP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.costs.flops import count_spec
from harness.errors import UserError
from sweeps.cli.sweep import sweep
from sweeps.plan.budget import check_budget
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study

STUDY = """name = "b"
base = "digits"
[axes]
seed = [0, 1]
[set]
"backbone.size" = "pico"
"train.steps" = 3
[budget]
flops = %d
"""


def test_sweep_starts_nothing_when_the_plan_exceeds_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "b.toml"
    file.write_text(STUDY % 1)
    planned_runs = make_plan(load_study(str(file))).runs
    cost = sum(count_spec(planned.spec).total for planned in planned_runs)
    for budget, enough in ((cost, True), (cost - 1, False)):
        file.write_text(STUDY % budget)
        shown = CliRunner().invoke(sweep, [str(file), "--dry-run"])
        assert ("which is too small" in shown.stdout) != enough and shown.exit_code == 0
        described = json.loads(CliRunner().invoke(sweep, [str(file), "--dry-run", "--json"]).stdout)
        assert described["flops"]["budget"] == budget and described["flops"]["total"] == cost
    with pytest.raises(UserError, match=r"more than its budget\.flops"):
        check_budget(load_study(str(file)), planned_runs)
    rejected = CliRunner().invoke(sweep, [str(file), "--no-track"])
    assert isinstance(rejected.exception, UserError) and not (tmp_path / "runs").exists()
    file.write_text(STUDY % cost)
    check_budget(load_study(str(file)), planned_runs)
