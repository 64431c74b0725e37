"""Same spec, same id: every spec has the run id that version 0.2.0 gave it, and knows that of version 0.1.0.

Runs of 0.1.0 are continued under their ids, which hashed evaluation and number of steps too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.assembly.resolve import PRESETS, load_spec
from harness.config import registry
from harness.data.pin import pinned
from sweeps.plan.plan import make_plan
from sweeps.plan.study import STUDIES, load_study
from sweeps.tune.tuner import make_tuning_study, trial_runs

IDS = json.loads((Path(__file__).parents[1] / "fixtures" / "run_ids.json").read_text())
"""`studies` hold the ids of a plan in order. `specs` hold rows by preset: an id, then its settings."""


def named(row: dict[str, Any]) -> str:
    return " ".join([row["study"], *row["set"]])


@pytest.mark.parametrize("row", IDS["studies"], ids=named)
def test_study_plans_the_same_runs(row: dict[str, Any]) -> None:
    found = make_plan(load_study(row["study"], row["set"]))
    assert [cell.spec.legacy_id for cell in found.runs] == row["ids"]
    assert len(found.excluded) == row["left_out"]


@pytest.mark.parametrize("preset", IDS["specs"])
def test_spec_has_the_same_id(preset: str) -> None:
    rows = IDS["specs"][preset]
    found = [[pinned(load_spec(preset, settings)).legacy_id, *settings] for _, *settings in rows]
    assert [new for new, old in zip(found, rows, strict=True) if new != old] == []


def test_trial_of_a_search_has_the_same_ids(tmp_path: Path) -> None:
    for row in IDS["trials"]:
        study = load_study(row["study"])
        arm = next(arm for arm in make_tuning_study(study, tmp_path).arms if arm.method == row["method"])
        cells = trial_runs(study, arm, row["params"], row["steps"])
        assert {str(cell.spec.seed): cell.spec.legacy_id for cell in cells} == row["ids"]


def test_every_study_preset_and_method_of_the_last_version_is_held() -> None:
    assert {row["study"] for row in IDS["studies"]} <= set(STUDIES.names())
    assert set(IDS["specs"]) <= set(PRESETS.names())
    settings = {setting for rows in IDS["specs"].values() for _, *own in rows for setting in own}
    chosen = {
        setting.removeprefix("method.name=") for setting in settings if setting.startswith("method.name=")
    }
    assert chosen <= set(registry.names("method")) and len(chosen) == 17
