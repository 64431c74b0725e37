"""Reports on runs that were measured under several sets of conditions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner
from scipy import stats

from harness.errors import UserError
from harness.records.evaluations import add_evaluation
from reports.analysis.report import read_report
from reports.audit.inputs.mlflow_runs import protocols_of_params
from reports.audit.inputs.read import read_arms
from reports.cli.audit import audit
from reports.cli.figures import figures
from reports.cli.report import report as command
from reports.pages.conditions import answer, question
from reports.race.race import read_race
from tests.reports.synthetic import METRIC, power_law, write_run

GRID = range(100, 1001, 100)


def about(guidance: float) -> dict:
    fields = {"sampler": "heun", "sampler_steps": 50, "guidance": guidance, "n_fake": 512, "n_real": 1000}
    return {"hash": f"protocol-{guidance:g}", "protocol": fields | {"metrics": [METRIC]}}


def write(folder: Path, scales: Mapping[str, Mapping[float, float]], seeds: int = 3) -> Path:
    """Write arms with a scale of their power law for each guidance; 1.0 is that of training."""
    for method, by_guidance in scales.items():
        for seed in range(seeds):
            own = 1 + 0.01 * seed
            set_ = {"eval.sampler": "heun", "eval.sampler_steps": 50, "eval.samples": 512}
            path = folder / f"{method}-{seed}"
            curve = power_law(by_guidance[1.0] * own, 0.5)
            environment = {"evaluation": about(1.0)}
            shared = {"grid": GRID, "environment": environment, "protocol": "protocol-1", "set_": set_}
            write_run(path, method, seed, metric=curve, **shared)
            for guidance, scale in by_guidance.items():
                for step in GRID if guidance != 1.0 else ():
                    value = power_law(scale * own, 0.5)(step)
                    row = {"mean": value, "low": None, "high": None, "n": 512}
                    line = {"kind": "eval", "step": step, "images": 64 * step, "metrics": {METRIC: row}}
                    known = about(guidance)
                    add_evaluation(path, line | {"protocol": known["hash"]}, known)
    return folder


FLIPS = {"flow": {1.0: 1000.0, 1.5: 700.0}, "repa": {1.0: 900.0, 1.5: 800.0}}


def test_report_says_that_guidance_changes_the_ranking_when_both_differences_are_resolved(
    tmp_path: Path,
) -> None:
    report = read_report([write(tmp_path, FLIPS)], target=35.0)
    assert [view.name for view in report.views] == ["guidance=1", "guidance=1.5"]
    assert question(report) == "Does guidance change the ranking?"
    assert answer(report).startswith(
        "Yes: flow is better than repa under guidance=1.5, and worse under guidance=1."
    )
    first, second = report.views
    assert {label: arm.rank for label, arm in first.ranking.items()} == {"repa": 1, "flow": 2}
    assert {label: arm.rank for label, arm in second.ranking.items()} == {"flow": 1, "repa": 2}
    factors = [1.0, 1.01, 1.02]
    differences = [(800.0 - 700.0) * own * 1000**-0.5 for own in factors]
    low, high = stats.t.interval(0.95, 2, sum(differences) / 3, stats.sem(differences))
    found = second.ranking["repa"].difference
    assert (found.mean, found.low, found.high) == pytest.approx((sum(differences) / 3, low, high))


def test_report_says_that_the_order_is_the_same_or_unresolved(tmp_path: Path) -> None:
    same = {"flow": {1.0: 1000.0, 1.5: 800.0}, "repa": {1.0: 900.0, 1.5: 700.0}}
    report = read_report([write(tmp_path / "same", same)], target=35.0)
    assert answer(report).startswith("Not here: all 2 sets of conditions rank the arms in the same order")
    assert answer(report).endswith("and the intervals of 1 of 1 paired differences exclude 0 under each.")
    one = read_report([write(tmp_path / "one", FLIPS, seeds=1)], target=35.0)
    assert answer(one).startswith("Unresolved")


def test_same_order_of_means_without_intervals_is_unresolved(tmp_path: Path) -> None:
    """One seed has no interval, so that the same order of two means shows nothing."""
    same = {"flow": {1.0: 1000.0, 1.5: 800.0}, "repa": {1.0: 900.0, 1.5: 700.0}}
    report = read_report([write(tmp_path, same, seeds=1)], target=35.0)
    assert answer(report).startswith("Unresolved: all 2 sets of conditions rank the arms in the same order")


def test_protocol_chooses_the_conditions_of_every_number(tmp_path: Path) -> None:
    """At guidance 1.5 flow reaches 35 at (700 / 35) ** 2 = 400, at 1 at (1000 / 35) ** 2 = 816."""
    runs = write(tmp_path / "runs", FLIPS, seeds=1)
    shown = {
        protocol: read_race([runs], target=35.0, protocol=protocol) for protocol in (None, "guidance=1.5")
    }
    times = {name: race.times["steps", "flow"].estimate for name, race in shown.items()}
    assert times == pytest.approx({None: (1000 / 35) ** 2, "guidance=1.5": 400.0})
    assert shown[None].protocol == "sampler heun, 50 steps, guidance 1, n = 512 samples"
    assert "guidance 1.5" in shown["guidance=1.5"].protocol
    words = [str(runs), "-o", str(tmp_path / "figures"), "--protocol", "guidance=1.5", "--target", "35"]
    words += ["--format", "svg", "--json"]
    found = CliRunner().invoke(figures, words, catch_exceptions=False)
    assert found.exit_code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("guidance=3", r"no run was evaluated under it \(evaluated under: guidance=1; guidance=1.5\)"),
        ("guidance", "expected NAME=VALUE, for example guidance=1.5"),
        ("guidanse=1", "unknown setting of a protocol 'guidanse'.*Did you mean 'guidance'"),
    ],
)
def test_protocol_names_the_known_conditions(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_race([write(tmp_path, FLIPS, seeds=1)], protocol=text)


@pytest.mark.usefixtures("undrawn")
def test_page_has_the_section_with_a_switch_and_every_section_its_protocol(tmp_path: Path) -> None:
    runs, page = write(tmp_path / "runs", FLIPS), tmp_path / "report.html"
    words = [str(runs), "-o", str(page), "--target", "35", "--json"]
    found = json.loads(CliRunner().invoke(command, words, catch_exceptions=False).output)
    assert [view["conditions"] for view in found["views"]] == ["guidance=1", "guidance=1.5"]
    assert found["views"][1]["ranking"][0]["method"] == "flow"
    assert found["ranking_changes"].startswith("Does guidance change the ranking? Yes: flow is better than")
    html = page.read_text()
    assert "<h2>Does guidance change the ranking?</h2>" in html
    assert html.count('name="conditions"') == 2
    assert html.count("fd:local: sampler heun, 50 steps, guidance 1, n = 512 samples") >= 6
    assert html.count("fd:local: sampler heun, 50 steps, guidance 1.5, n = 512 samples") == 1


def test_audit_judges_under_the_conditions_of_the_protocol(tmp_path: Path) -> None:
    """Under guidance 1 repa needs (900 / 1000) ** 2 of flow's steps, under 1.5 (800 / 700) ** 2."""
    runs, claim = write(tmp_path / "runs", FLIPS), tmp_path / "claim.toml"
    claim.write_text(
        f'[claim]\nname = "one"\ncandidate = "repa"\nbaseline = "flow"\nmetric = "{METRIC}"\n'
        "target = 35.0\nfactor = 1.1\n"
    )
    for words, verdict in (([], "supported"), (["--protocol", "guidance=1.5"], "refuted")):
        found = CliRunner().invoke(audit, [str(claim), str(runs), *words, "--json"], catch_exceptions=False)
        assert json.loads(found.output)["verdict"] == verdict
    report = read_report([runs], target=35.0, protocol="guidance=1.5", claims=[claim])
    assert report.claims[0].verdict == "refuted"


def test_section_is_left_out_for_a_single_set_of_conditions(tmp_path: Path) -> None:
    one = {method: {1.0: by_guidance[1.0]} for method, by_guidance in FLIPS.items()}
    report = read_report([write(tmp_path, one, seeds=1)], target=35.0)
    assert len(report.views) == 1 and report.under_views == (report,)


def test_first_scale_of_a_list_is_that_of_the_curves(tmp_path: Path) -> None:
    """Records that have only the hash of a protocol are described by their spec."""
    scales = {"one": 1.0, "both": [1.0, 2.0]}
    for number, (name, scale) in enumerate(scales.items()):
        write_run(tmp_path / name, seed=number, set_={"eval.sampler": "heun", "eval.guidance": scale})
    race = read_race([tmp_path], target=35.0)
    assert race.protocol == "sampler heun, guidance 1, n = 512 samples"
    read = read_arms([str(tmp_path)], ("flow",), METRIC).runs["flow"].values()
    fields = [found for run in read for found in run.protocols.values()]
    assert fields == [{"sampler": "heun", "guidance": 1.0}] * 2
    stored = [{"eval.guidance": str(scale)} for scale in scales.values()]
    assert protocols_of_params(stored[0]) == protocols_of_params(stored[1])
