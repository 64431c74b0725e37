"""The speed-up by attribute of the captions, against power laws whose times to target are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path

import pytest
from click.testing import CliRunner
from scipy import stats

from harness.data.parts import KINDS
from harness.records.evaluations import row_of
from reports.analysis.report import RaceReport
from reports.cli.report import report as command
from reports.pages.attributes import attribute_section
from reports.race.by_attribute import by_attribute
from reports.race.race import read_race
from tests.reports.synthetic import METRIC, power_law, write_run

TWO, LONG, COLOUR = "loss:held_out/two_digits", "loss:held_out/long_captions", "obeys:colour"
FACTORS = {TWO: 1.5, LONG: 1.0, COLOUR: 2.0}
"""The speed-up of the candidate by each metric, for its first seed."""
SEEDS = (1.0, 1.03, 1.06)
"""The time of each seed of the candidate, relative to the first."""


def curves(factor: Mapping[str, float], slower: float) -> dict[str, Callable[[float], float]]:
    """Return the metrics of a run that is so much faster than the baseline; a share rises to 1."""
    losses = {
        name: lambda step, of=name: power_law(10.0, 0.5)(step * factor[of] / slower) for name in (TWO, LONG)
    }
    share = {COLOUR: lambda step: 1 - power_law(5.0, 0.5)(step * factor[COLOUR] / slower)}
    kinds = {"image", *chain.from_iterable(KINDS.values())}
    of_parts = [f"loss:held_out/{kind}" for kind in sorted(kinds)]
    ignored = {name: power_law(10.0, 0.5) for name in (*of_parts, "loss:held_out@0.5", "obeys:count/video")}
    return losses | share | ignored


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    plain = dict.fromkeys(FACTORS, 1.0)
    for seed, slower in enumerate(SEEDS):
        write_run(folder / f"flow{seed}", "flow", seed, others=curves(plain, 1.0))
        write_run(folder / f"repa{seed}", "repa", seed, others=curves(FACTORS, slower))
    return folder


def test_speed_up_by_attribute_is_that_of_the_curves_of_each_metric(runs: Path) -> None:
    found = by_attribute(read_race([runs], target="baseline@1000"))
    assert [one.attribute for one in found] == ["two digits", "long captions", "colour"]
    logs = [-math.log(slower) for slower in SEEDS]
    for one, metric in zip(found, (TWO, LONG, COLOUR), strict=True):
        gain = one.race.speedups["steps", "repa"]
        mean = sum(logs) / 3
        low, high = stats.t.interval(0.95, 2, mean, stats.sem(logs))
        expected = [FACTORS[metric] * math.exp(x) for x in (mean, low, high)]
        assert (gain.estimate, gain.low, gain.high) == pytest.approx(expected, rel=2e-3)
        assert one.samples == 512 and gain.n == 3
    assert found[2].race.target == pytest.approx(5.0 * 1000**-0.5)


def test_target_of_an_attribute_is_the_baselines_final_value_when_that_of_the_race_is_a_number(
    runs: Path,
) -> None:
    race = read_race([runs], target=30.0)
    assert [one.race.target for one in by_attribute(race)[:2]] == pytest.approx([10.0 * 2000**-0.5] * 2)
    assert race.metric == METRIC and race.target == 30.0


@pytest.mark.usefixtures("undrawn")
def test_report_has_one_table_and_the_rows_of_json(runs: Path, tmp_path: Path) -> None:
    page = attribute_section(RaceReport(read_race([runs], target="baseline@1000")))
    assert page is not None and page.count("<tr>") == 1 + 3
    text = page.replace("\u00a0", " ")
    assert "Speed-up by attribute" in text and "1-obeys:colour ≤" in text and "n = 512" in text
    words = [str(runs), "-o", str(tmp_path / "report.html"), "--json", "--metric", f"1-{COLOUR}"]
    out = CliRunner().invoke(command, [*words, "--target", "baseline@1000"], catch_exceptions=False).output
    found = json.loads(out)
    assert found["metric"] == f"1-{COLOUR}" and len(found["by_attribute"]) == 3
    by_metric = {one["metric"]: one["rows"] for one in found["by_attribute"]}
    assert by_metric[f"1-{COLOUR}"] == found["rows"]


def test_section_is_left_out_without_metrics_of_attributes_or_with_one_step_of_them(tmp_path: Path) -> None:
    for method in ("flow", "repa"):
        write_run(tmp_path / "a" / method, method)
        write_run(tmp_path / "b" / method, method, others={COLOUR: lambda _: 0.5}, grid=(100,))
    assert attribute_section(RaceReport(read_race([tmp_path / "a"]))) is None
    assert by_attribute(read_race([tmp_path / "b"])) == ()


def test_shortfall_of_a_share_of_one_is_half_a_sample_and_turns_its_interval() -> None:
    row = {"mean": 1.0, "low": 0.9, "high": 1.0, "n": 50, "replicates": [1.0, 0.75]}
    turned = {"mean": 0.01, "low": 0.0, "high": pytest.approx(0.1), "n": 50, "replicates": [0.0, 0.25]}
    assert row_of({"metrics": {COLOUR: row}}, f"1-{COLOUR}") == turned
    assert row_of({"metrics": {COLOUR: row}}, COLOUR) is row
    assert row_of({"metrics": {}}, f"1-{COLOUR}") is None


def test_report_on_a_rising_share_names_its_shortfall(runs: Path) -> None:
    report = RaceReport(read_race([runs], metric=COLOUR))
    assert (
        "rises during training in every run" in report.headline and f"--metric 1-{COLOUR}" in report.headline
    )
