"""Targets of single runs: those of the command, else of the study; relative ones from the cell's baseline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.records.record import Record
from harness.records.run_targets import targets_of_run
from harness.records.targets import parse_targets
from reports.race.race import read_race
from tests.reports.synthetic import METRIC, power_law, write_run

SCALES = {("flow", 0.1): 1000.0, ("flow", 0.2): 800.0, ("repa", 0.1): 900.0, ("repa", 0.2): 600.0}


def write_study(folder: Path, target: str) -> Path:
    """Write two methods in two cells; flow has scale * step ** -0.5 with the scale of its cell."""
    for (method, rate), scale in SCALES.items():
        path = folder / f"{method}-{rate}"
        write_run(path, method, metric=power_law(scale, 0.5), set_={"train.learning_rate": rate})
    runs = [{"id": path.name, "cell": {}} for path in sorted(folder.iterdir())]
    (folder / "plan.json").write_text(json.dumps({"runs": runs}))
    (folder / "study.toml").write_text(f'baseline = "flow"\n[target]\nmetric = "{METRIC}"\n{target}\n')
    return folder


@pytest.mark.parametrize("target", ['at = "baseline@400"', "share_of_final = 0.9", "value = 30"])
def test_target_of_a_run_equals_that_of_the_report_in_its_cell(tmp_path: Path, target: str) -> None:
    folder = write_study(tmp_path, target)
    race = read_race([folder])
    for (method, rate), _ in SCALES.items():
        metric, values = targets_of_run(Record(folder / f"{method}-{rate}"))
        label = f"{method} (train.learning_rate = {rate:g})"
        assert (metric, values) == (METRIC, [pytest.approx(race.target_of(label))])


def test_baseline_at_step_is_the_value_of_the_cells_baseline(tmp_path: Path) -> None:
    folder = write_study(tmp_path, 'at = "baseline@400"')
    _, values = targets_of_run(Record(folder / "repa-0.2"))
    assert values == [pytest.approx(800.0 / 20)]


def test_target_of_the_command_wins_and_may_be_a_list(tmp_path: Path) -> None:
    folder = write_study(tmp_path, "value = 30")
    rules = parse_targets("25,baseline@100")
    _, values = targets_of_run(Record(folder / "repa-0.1"), rules=rules)
    assert values == [25.0, pytest.approx(100.0)]


def test_relative_target_without_a_run_of_the_baseline_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "repa")
    with pytest.raises(UserError, match="needs a finished run of 'flow' in the same cell"):
        targets_of_run(run, metric=METRIC, rules=parse_targets("90%"))
    with pytest.raises(UserError, match="belongs to no study with a target; give --metric and --target"):
        targets_of_run(run)
