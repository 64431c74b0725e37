"""Probes of state and action in a report: hand-made tables against scipy, and the section of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.errors import UserError
from reports.analysis.control import Score, compute_control, mean_score
from reports.analysis.report import RaceReport
from reports.pages.control import control_section
from reports.pages.page import write_report
from reports.race.race import read_race
from tests.reports.synthetic import write_run

STATE = {"flow": (0.50, 0.54, 0.61), "sra": (0.70, 0.75, 0.71)}
"""R2 of layer 2 by arm and seed, at the newest step."""


def value(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.125, "high": mean + 0.25, "n": 15, "penalty": 0.1}


def row(mean: float) -> dict[str, Any]:
    return {"state": value(mean), "action": value(mean / 2)}


def entry(mean: float, layers: int = 3) -> dict[str, Any]:
    """Return the table of a run in which layer 2 is best; at the older step 1000 all scores are low."""
    now = {f"layer {n}": row(mean - 0.1 * abs(n - 2)) for n in range(1, layers + 1)}
    before = {name: row(0.01) for name in now}
    floors = {"pixels": row(0.9), "untrained": row(-0.05)}
    return {"data": "0b7e", "videos": 359, **floors, "steps": {"1000": before, "2000": now}}


def write_table(folder: Path, runs: dict[str, Any], **protocol: Any) -> None:
    table = {"protocol": {"time": 0.25, "samples": 2000} | protocol, "runs": runs, "left_out": {}}
    (folder / "control.json").write_text(json.dumps(table))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs = {}
    for arm, means in STATE.items():
        for seed, mean in enumerate(means):
            write_run(tmp_path / f"{arm}-{seed}", arm, seed)
            runs[f"{arm}-{seed}"] = entry(mean)
    write_table(tmp_path, runs)
    return tmp_path


def test_scores_match_scipys_t_interval_over_seeds(folder: Path) -> None:
    found = compute_control(read_race([folder]))
    assert found.arms == ("flow", "sra")
    assert found.rows == ("pixels", "untrained", "layer 1", "layer 2", "layer 3")
    for arm, values in STATE.items():
        for name, target, scale in (("layer 2", "state", 1.0), ("layer 2", "action", 0.5)):
            low, high = stats.t.interval(
                0.95, 2, loc=scale * np.mean(values), scale=scale * stats.sem(values)
            )
            score = found.scores[arm, name, target]
            assert (score.mean, score.low, score.high) == pytest.approx((scale * np.mean(values), low, high))
        assert found.best(arm, "state") == "layer 2" and found.steps[arm] == (2000,)
    assert found.seeds == {"flow": 3, "sra": 3} and (found.videos, found.absent) == ((359,), 0)


def test_pixels_and_single_runs_have_the_interval_over_videos(folder: Path) -> None:
    """The scores of pixels do not depend on the seed, so their interval over seeds would have no width."""
    assert mean_score([value(0.5)]) == Score(0.5, 0.375, 0.75)
    assert compute_control(read_race([folder])).scores["sra", "pixels", "state"] == Score(0.9, 0.775, 1.15)


def test_layers_are_sorted_by_number(folder: Path) -> None:
    write_table(folder, {"flow-0": entry(0.5, layers=11), "sra-0": entry(0.5, layers=2)})
    found = compute_control(read_race([folder]))
    assert found.rows[2:] == tuple(f"layer {n}" for n in range(1, 12)) and found.absent == 4
    assert ("sra", "layer 3", "state") not in found.scores
    page = control_section(RaceReport(read_race([folder])))
    assert page.count("<td>–</td>") == 2 * 9
    assert "4 finished runs were not measured" in page and "and for a single seed" in page


def test_only_finished_runs_of_the_race_count(folder: Path, tmp_path: Path) -> None:
    """Left out are a stopped run, a run outside the race, and a run without a measured layer."""
    (folder / "sra-2" / "done").unlink()
    table = json.loads((folder / "control.json").read_text())
    table["runs"]["elsewhere"] = entry(0.99)
    table["runs"]["flow-2"]["steps"] = {}
    (folder / "control.json").write_text(json.dumps(table))
    found = compute_control(read_race([folder]))
    assert found.scores["sra", "layer 2", "state"].mean == pytest.approx(np.mean(STATE["sra"][:2]))
    assert found.seeds["flow"] == 2 and found.absent == 1


def test_tables_of_several_folders_are_merged_when_settings_agree(tmp_path: Path) -> None:
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        write_run(tmp_path / str(seed) / f"flow-{seed}", "flow", seed)
        write_table(tmp_path / str(seed), {f"flow-{seed}": entry(0.5)})
    folders = [tmp_path / "0", tmp_path / "1"]
    assert compute_control(read_race(folders)).seeds == {"flow": 2}
    write_table(folders[1], {"flow-1": entry(0.5)}, time=0.5)
    with pytest.raises(
        UserError, match=r"control\.json files of these folders were measured under different settings"
    ):
        compute_control(read_race(folders))


@pytest.mark.usefixtures("undrawn")
def test_page_has_the_table_of_probes(folder: Path) -> None:
    page = write_report([folder], folder / "report.html").html.read_text()
    assert 'id="control"' in page and "Representation for control" in page
    # sra: 2.16 / 3 -+ 4.303 * 0.01528
    assert "<td><b>0.720</b><small>[0.654,\u00a00.786]</small></td>" in page
    assert (
        "<td>−0.050<small>" in page and "step 2,000, n\u00a0=\u00a03" in page and "359 videos per run" in page
    )
    assert "for a single seed" not in page and "were not measured" not in page


def test_page_has_no_control_section_without_a_table(folder: Path) -> None:
    (folder / "control.json").unlink()
    assert (
        compute_control(read_race([folder])) is None
        and control_section(RaceReport(read_race([folder]))) is None
    )
    write_table(folder, {"elsewhere": entry(0.5)})
    assert control_section(RaceReport(read_race([folder]))) is None


def test_text_of_users_is_escaped(tmp_path: Path) -> None:
    for seed in range(2):
        for size in ("S", "<script>"):
            write_run(tmp_path / f"{len(size)}-{seed}", "flow", seed, set_={"backbone.size": size})
    write_table(tmp_path, {f"{n}-{seed}": entry(0.5) for n in (1, 8) for seed in range(2)})
    page = control_section(RaceReport(read_race([tmp_path], baseline="flow (backbone.size = S)")))
    assert "&lt;script&gt;" in page and "<script>" not in page


BROKEN: dict[str, Any] = {
    "no JSON": "{",
    "a list": [],
    "no runs": {"protocol": {"time": 0.25}},
    "no protocol": {"runs": {}},
    "runs of another kind": {"protocol": {"time": 0.25}, "runs": {"a": 1}},
    "no floors": {
        "protocol": {"time": 0.25}, "runs": {"a": {"videos": 3, "steps": {"1": {"layer 1": row(0.5)}}}},
    },
    "no layers": {"protocol": {"time": 0.25}, "runs": {"a": entry(0.5) | {"steps": {"1": {}}}}},
    "other names": {
        "protocol": {"time": 0.25}, "runs": {"a": entry(0.5) | {"steps": {"1": {"block": row(0.5)}}}},
    },
    "no numbers": {
        "protocol": {"time": 0.25}, "runs": {"a": entry(0.5) | {"pixels": {"state": {}, "action": {}}}},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_invalid_table_is_named(folder: Path, name: str) -> None:
    text = BROKEN[name] if isinstance(BROKEN[name], str) else json.dumps(BROKEN[name])
    (folder / "control.json").write_text(text)
    with pytest.raises(
        UserError, match=r"not a valid table of probes; move it away and run: flowrace probe \S+ --control"
    ):
        compute_control(read_race([folder]))
