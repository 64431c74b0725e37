"""The studies that ship, cut down to seconds, from their first run to their report."""

from __future__ import annotations

import csv
import json
import math
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner

from harness.cli.main import cli
from harness.records.evaluations import belongs
from harness.records.record import Record
from reports.race.race import read_race
from sweeps.plan.plan import make_plan
from sweeps.plan.study import STUDIES, load_study
from tests.support.runs import trained

SMALL = {
    "backbone.size": "pico",
    "data.held_out": 0.9,
    "train.steps": 6,
    "train.batch_size": 8,
    "train.checkpoint_every": 6,
    "eval.every": 3,
    "eval.samples": 24,
    "eval.sampler_steps": 2,
    "eval.batch_size": 24,
    "ema.decay": 0.9,
}
JOINT = (0.34, 0.10, 1.0, 0.0)
"""Video weights: two of the paper's five, and each part alone."""


pytestmark = pytest.mark.usefixtures("quick_networks")


def raced(
    name: str, tmp_path: Path, cut: dict[str, Any], small: dict[str, Any] = SMALL
) -> list[dict[str, Any]]:
    """Return the runs of a cut-down study as its sweep prints them.

    All but the last are trained in this process, where everything is loaded. The sweep trains the last one
    and writes the report.
    """
    table = STUDIES.table(name) | cut
    (tmp_path / "study.toml").write_text(tomli_w.dumps(table))
    words = [f"{path}={json.dumps(value)}" for path, value in small.items()]
    out = tmp_path / "out"
    *cells, last = make_plan(load_study(str(tmp_path / "study.toml"), words)).runs
    for cell in cells:
        trained(cell.spec, out)
    settings = [word for override in words for word in ("--set", override)]
    command = ["sweep", str(tmp_path / "study.toml"), *settings, "--out", str(out), "--no-track", "--json"]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("started") == 1 and last.id in result.stderr
    printed = json.loads(result.stdout)
    assert Path(printed["report"]) == out / "report.html" and len(printed["runs"]) == len(cells) + 1
    return printed["runs"]


def check_reported(out: Path, runs: list[dict[str, Any]], arms: int) -> None:
    """Check that every run is done with a finite value of each metric, and that the report has every arm."""
    for run in runs:
        asked = Record(out / run["id"]).spec["eval"]["metrics"]
        assert run["status"] == "done" and {*asked} <= {*run["metrics"]}
        # The others are values of these by time or part.
        assert all(any(belongs(name, metric) for metric in asked) for name in run["metrics"])
        assert all(map(math.isfinite, run["metrics"].values()))
    found = read_race([out]).arms
    html = unescape((out / "report.html").read_text())
    assert len(found) == arms and all(arm.label in html for arm in found)
    with open(out / "report-runs.csv", newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} == {run["id"] for run in runs}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["video-digits", "audio-tones", "words"])
def test_study_of_one_modality_ends_with_its_report(name: str, tmp_path: Path) -> None:
    runs = raced(name, tmp_path, {"axes": STUDIES.table(name)["axes"] | {"seed": [0, 1]}})
    assert {run["cell"]["method.name"] for run in runs} == {"flow", "repa", "sra", "self_flow"}
    check_reported(tmp_path / "out", runs, arms=4)


@pytest.mark.slow
def test_joint_study_ends_with_its_report(tmp_path: Path) -> None:
    """Two of the paper's weights, and each part by itself with the metrics of that part."""
    table = STUDIES.table("joint-bounce")
    weights = table["zip"]["weights"]
    rows = [weights["data.video_weight"].index(weight) for weight in JOINT]
    cut = {path: [values[row] for row in rows] for path, values in weights.items()}
    runs = raced("joint-bounce", tmp_path, {"axes": table["axes"] | {"seed": [0]}, "zip": {"weights": cut}})
    methods = table["axes"]["method.name"]
    assert {"flow", "sra", "self_flow"} <= {*methods}
    # REPA's encoders read one modality.
    left_out = sum(0 < weight < 1 for weight in JOINT)
    check_reported(tmp_path / "out", runs, arms=len(methods) * len(JOINT) - left_out)


@pytest.mark.slow
def test_study_of_captioned_clips_ends_with_its_report(tmp_path: Path) -> None:
    """Both parts from one caption, and the video by itself, where REPA runs too."""
    axes = STUDIES.table("bounce-prompts")["axes"] | {"seed": [0]}
    cut = {"axes": axes, "target": STUDIES.table("bounce-prompts")["target"] | {"at": "baseline@6"}}
    runs = raced("bounce-prompts", tmp_path, cut, SMALL | {"text.encoder": "random:text"})
    check_reported(tmp_path / "out", runs, arms=5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arms"), [("schedule", 12), ("self-flow-ablation", 10)])
def test_studies_of_digits_end_with_their_report(name: str, arms: int, tmp_path: Path) -> None:
    """Every arm on two seeds."""
    runs = raced(name, tmp_path, {"axes": STUDIES.table(name)["axes"] | {"seed": [0, 1]}})
    check_reported(tmp_path / "out", runs, arms)


@pytest.mark.slow
def test_study_of_cifar10_in_pixels_ends_with_its_report(tmp_path: Path, shared_data: Path) -> None:
    """From the published parquet file, with a local encoder in place of DINOv2."""
    small = SMALL | {"data.root": str(shared_data / "cifar10" / "test.parquet")}
    names = STUDIES.table("head-to-head")["axes"]["method.name"]
    own = {name: {"encoder": {"name": "local:small"}} if name.endswith("repa") else {} for name in names}
    axes = {"seed": [0, 1], "method": [{"name": name, **rest} for name, rest in own.items()]}
    runs = raced("head-to-head", tmp_path, {"axes": axes}, small)
    check_reported(tmp_path / "out", runs, arms=6)


@pytest.mark.slow
def test_study_of_backbone_sizes_reports_scaling(tmp_path: Path) -> None:
    """Sizes and objectives, and how quality moves with size."""
    small = {path: value for path, value in SMALL.items() if path != "backbone.size"}
    axes = STUDIES.table("model-scaling")["axes"] | {"seed": [0, 1]}
    runs = raced("model-scaling", tmp_path, {"axes": axes}, small)
    check_reported(tmp_path / "out", runs, arms=12)
    assert 'id="sizes"' in (tmp_path / "out" / "report.html").read_text()
