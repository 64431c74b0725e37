"""Readings of separate gradients in a report: means against scipy, the verdict, the figure, page and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from harness.errors import UserError
from harness.records.early_end import EarlyEnd
from harness.records.flatten import points
from harness.records.record import DONE, Record
from reports.analysis.report import RaceReport
from reports.cli.figures import figures
from reports.cli.report import report as report_command
from reports.figures.gradient_figures import PANELS, draw_gradients, mean_over_seeds
from reports.figures.svg import Look, with_look
from reports.pages.gradients import gradient_section, percent, reading
from reports.pages.report_json import to_json
from reports.race.gradients import gradients_of
from reports.race.race import read_race
from tests.reports.synthetic import write_run

STEPS = range(100, 2001, 100)
Rule = Callable[[int], float]


def event(step: int, share: float, cosine: float, loss: float, teacher: float = 0.5) -> dict[str, Any]:
    """Return a reading in which the flow loss's gradient has norm 2 and the network's share is a tenth."""
    a = 2 * share / 10 / (1 - share / 10)
    return {
        "kind": "gradients",
        "step": step,
        "images": 64 * step,
        "norms": {"flow": 2.0, "auxiliary": a},
        "share": share / 10,
        "cosine": cosine / 10,
        "reached": {"blocks": 2, "share": share, "cosine": cosine},
        "losses": {"loss": 1 + loss, "flow": 1.0, "align": loss},
        "features": {"student 2": 0.9, "student 10": 1.5, "teacher 3": 0.8},
        "sameness": {"student 2": 0.3, "student 10": 0.4, "teacher 3": teacher},
        "reading_flops": 50_000_000,
    }


def plain(step: int) -> dict[str, Any]:
    about = {"kind": "gradients", "step": step, "images": 64 * step, "norms": {"flow": 2.0}}
    return about | {"losses": {"loss": 1.0, "flow": 1.0}, "features": {"student 10": 1.5}, "sameness": {}}


def log(record: Record, events: list[dict[str, Any]]) -> None:
    """Add readings to a record, in order of step."""
    lines = sorted([*record.events, *events], key=lambda one: one["step"])
    (record.path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def arm(
    folder: Path, name: str, share: Rule, *, seeds: int = 3, cosine: float = 0.2, loss: Rule = lambda _: 0.4
) -> None:
    for seed in range(seeds):
        record = write_run(
            folder / f"{name}-{seed}", name, seed, phases={"student": 0.02, "gradients": 0.001}
        )
        log(record, [event(s, share(s) * (1 + 0.1 * seed), cosine, loss(s)) for s in STEPS])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a race with plain flow matching, a share that dies, and one that is steady under a flat loss."""
    made = tmp_path_factory.mktemp("race")
    for seed in range(3):
        log(write_run(made / f"flow-{seed}", "flow", seed), [plain(step) for step in STEPS])
    arm(made, "sra", lambda step: 0.3 * 0.8 ** (step / 100), cosine=-0.1)
    arm(made, "self_flow", lambda step: 0.2)
    return made


def by_arm(folder: Path):
    found = gradients_of(read_race([folder], baseline=None))
    assert found is not None
    return found, {one.arm: one for one in found.arms}


def test_means_over_the_last_quarter_match_scipys_t_interval(folder: Path) -> None:
    found, arms = by_arm(folder)
    logs = np.log([0.2, 0.22, 0.24])
    low, high = np.exp(stats.t.interval(0.95, 2, loc=np.mean(logs), scale=stats.sem(logs)))
    share = arms["self_flow"].means["share"]
    assert (share.mean, share.low, share.high) == pytest.approx((stats.gmean([0.2, 0.22, 0.24]), low, high))
    last = [np.mean([0.3 * 0.8**k * (1 + 0.1 * seed) for k in range(16, 21)]) for seed in range(3)]
    assert arms["sra"].means["share"].mean == pytest.approx(stats.gmean(last))
    assert arms["sra"].means["network_share"].mean == pytest.approx(stats.gmean(last) / 10)
    cosine = arms["sra"].means["cosine"]
    assert (cosine.mean, cosine.low, cosine.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert (arms["sra"].first, arms["sra"].last, arms["sra"].blocks) == (1600, 2000, 2)
    # 20 readings of 50 steps each, of 2000 steps of 1 MFLOP; flow's readings have no FLOPs.
    assert found.flops == pytest.approx(2 * 20 * 50 / 2000 / 3)
    assert found.seconds == pytest.approx(2 * 0.001 / (2 * 0.02 + 0.0235))


def test_flat_loss_is_called_dead_or_steady_by_its_share_of_the_gradient(folder: Path) -> None:
    _, arms = by_arm(folder)
    assert [arms[name].state for name in ("flow", "sra", "self_flow")] == ["none", "dead", "steers"]
    assert arms["sra"].trend == arms["self_flow"].trend == "flat"
    assert reading(arms["sra"]).startswith("dead: below 1 % of the gradient, alignment no longer steers")
    assert reading(arms["sra"]).endswith("it opposes the flow loss")
    assert reading(arms["self_flow"]).startswith("steady: the loss is flat, but 21.9 % of the gradient")
    assert reading(arms["flow"]) == "no auxiliary term: norms only"


@pytest.mark.parametrize(
    ("share", "seeds", "state"),
    [
        (lambda _: 0.0095, 3, "undecided"),
        (lambda _: 0.005, 1, "dead"),
        (lambda step: 0.02 if step == 1800 else 0.005, 1, "undecided"),
        (lambda _: 0.02, 1, "steers"),
        (lambda _: 0.0, 3, "dead"),
    ],
)
def test_state_needs_the_interval_on_one_side_of_one_percent(
    tmp_path: Path, share: Rule, seeds: int, state: str
) -> None:
    arm(tmp_path, "sra", share, seeds=seeds)
    _, arms = by_arm(tmp_path)
    assert arms["sra"].state == state


@pytest.mark.parametrize(
    ("falls", "trend", "words"),
    [
        ((0.0, 0.001, 0.0), "flat", "steady: the loss is flat"),
        # The mean is below 2 %, and its interval is not.
        ((0.0, 0.0, 0.04), "undecided", "the interval of its change contains 2 % up or down"),
        ((0.10, 0.11, 0.12), "changes", "its loss still changes"),
        ((0.0,), "single", "the change of a single seed has no interval"),
    ],
)
def test_loss_is_flat_if_the_interval_of_its_change_is(
    tmp_path: Path, falls: tuple[float, ...], trend: str, words: str
) -> None:
    for seed, fall in enumerate(falls):
        record = write_run(tmp_path / f"sra-{seed}", "sra", seed)
        log(record, [event(s, 0.2, 0.1, 0.4 * (1 - fall * (s > 1500))) for s in STEPS])
    _, arms = by_arm(tmp_path)
    assert arms["sra"].trend == trend and words in reading(arms["sra"])
    change = arms["sra"].means["change"]
    assert change.mean == pytest.approx(-np.mean(falls))
    if len(falls) > 1:
        ends = stats.t.interval(0.95, len(falls) - 1, loc=-np.mean(falls), scale=stats.sem(falls))
        assert (change.low, change.high) == pytest.approx(tuple(ends))


def test_change_of_three_readings_is_unknown(tmp_path: Path) -> None:
    for seed in range(3):
        log(write_run(tmp_path / f"a-{seed}", "sra", seed), [event(s, 0.2, 0.1, 0.4) for s in STEPS[:3]])
    _, arms = by_arm(tmp_path)
    assert arms["sra"].trend == "unknown" and "which takes 4 readings" in reading(arms["sra"])


def test_run_that_ended_early_is_drawn_and_not_averaged(tmp_path: Path) -> None:
    log(write_run(tmp_path / "sra-0", "sra", 0), [event(s, 0.2, 0.1, 0.4) for s in STEPS])
    for name, seed in (("sra", 1), ("repa", 0)):
        record = write_run(tmp_path / f"{name}-{seed}", name, seed)
        log(record, [event(s, 0.9, 0.1, 0.4) for s in STEPS])
        row = EarlyEnd(2000, 4000, "fd <= 9", 64 * 4000, 10**9).row()
        (record.path / DONE).write_text(json.dumps({"ended": row}))
    race = read_race([tmp_path], baseline="sra")
    found = gradients_of(race)
    assert found is not None and [(one.arm, one.means["share"].n) for one in found.arms] == [("sra", 1)]
    assert set(found.series["share"]) == {"sra", "repa"}
    with with_look(Look(legend=True)):
        legend = draw_gradients(race, found, 3.3).figure.legends[0]
    assert {"sra", "repa"} <= {text.get_text() for text in legend.get_texts()}


def test_loss_that_still_changes_is_not_called_steady(tmp_path: Path) -> None:
    arm(tmp_path, "repa", lambda _: 0.3, loss=lambda step: -step / 2000)
    _, arms = by_arm(tmp_path)
    # Mean losses of steps 1100 to 1500 and 1600 to 2000.
    assert arms["repa"].means["change"].mean == pytest.approx(-(0.9 - 0.65) / 0.65)
    assert "its loss still changes" in reading(arms["repa"])


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("end", [1000, 1600, 1900])
def test_alignment_that_has_ended_is_neither_dead_nor_steady(tmp_path: Path, seeds: int, end: int) -> None:
    """Also if it ended within the last quarter, which begins at step 1600."""
    for seed in range(seeds):
        record = write_run(tmp_path / f"haste-{seed}", "haste", seed)
        log(record, [event(s, 0.2, 0.1, 0.4) if s <= end else plain(s) for s in STEPS])
    _, arms = by_arm(tmp_path)
    assert arms["haste"].state == "off" and "ended by its schedule" in reading(arms["haste"])
    assert set(arms["haste"].means) == {"flow"} and arms["haste"].means["flow"].n == seeds


def test_arm_is_judged_by_its_runs_whose_alignment_has_not_ended(tmp_path: Path) -> None:
    """The other one ended with a share that alone would make it undecided."""
    for seed, (share, end) in enumerate([(0.2, 2000), (0.001, 1900)]):
        record = write_run(tmp_path / f"haste-{seed}", "haste", seed)
        log(record, [event(s, share, 0.1, 0.4) if s <= end else plain(s) for s in STEPS])
    _, arms = by_arm(tmp_path)
    assert arms["haste"].state == "steers" and arms["haste"].means["share"].n == 1


def test_interval_of_a_cosine_ends_at_one(tmp_path: Path) -> None:
    for seed, cosine in enumerate((0.2, 0.9)):
        log(write_run(tmp_path / f"sra-{seed}", "sra", seed), [event(s, 0.2, cosine, 0.4) for s in STEPS])
    _, arms = by_arm(tmp_path)
    mean = arms["sra"].means["cosine"]
    assert (mean.mean, mean.low, mean.high) == pytest.approx((0.55, -1, 1))


def test_means_are_those_of_finished_runs(folder: Path, tmp_path: Path) -> None:
    log(write_run(tmp_path / "sra-0", "sra", 0), [event(s, 0.2, 0.1, 0.4) for s in STEPS])
    log(write_run(tmp_path / "sra-1", "sra", 1, status="stopped"), [event(100, 0.9, 0.1, 0.4)])
    found, arms = by_arm(tmp_path)
    assert arms["sra"].means["share"].n == 1 and arms["sra"].means["share"].mean == pytest.approx(0.2)
    assert set(found.series["share"]["sra"]) == {0, 1}


def test_collapsed_target_is_named(tmp_path: Path) -> None:
    log(write_run(tmp_path / "a", "sra", 0), [event(s, 0.2, 0.1, 0.4, teacher=0.999) for s in STEPS])
    _, arms = by_arm(tmp_path)
    assert reading(arms["sra"]).endswith("; teacher 3 has collapsed")


def test_mean_of_the_figure_matches_scipy_and_covers_the_shared_steps() -> None:
    seeds = {0: ([1, 2, 3], [1.0, 2.0, 4.0]), 1: ([2, 3, 4], [8.0, 4.0, 1.0])}
    seeds = {seed: (np.array(steps), np.array(values)) for seed, (steps, values) in seeds.items()}
    steps, mean, low, high = mean_over_seeds(seeds, log=True)
    assert steps.tolist() == [2, 3] and mean == pytest.approx([4.0, 4.0])
    ends = np.exp(stats.t.interval(0.95, 1, loc=np.log(4), scale=stats.sem(np.log([2, 8]))))
    assert (low[0], high[0]) == pytest.approx(tuple(ends)) and (low[1], high[1]) == pytest.approx((4, 4))


def test_page_and_json_state_the_readings(folder: Path) -> None:
    report = RaceReport(read_race([folder], baseline="flow"))
    printed = json.loads(to_json(report, [], ""))["gradients"]
    assert [(row["method"], row["state"]) for row in printed] == [
        ("flow", "none"),
        ("self_flow", "steers"),
        ("sra", "dead"),
    ]
    assert printed[1]["share"]["mean"] == pytest.approx(stats.gmean([0.2, 0.22, 0.24]))
    section = gradient_section(report)
    assert section is not None and section.count("<svg viewBox") == 2 + len(report.race.arms)
    # The loss of both arms is 0.4 in every seed, so both ends are.
    assert section.replace("\u00a0", " ").count("<td>0.400<small>[0.400, 0.400]</small><small>change") == 2
    assert "alignment no longer steers" in section and "teacher 3" in section.lower()
    assert "took 3.15 % of the time of training and 33.3 % of its FLOPs" in section.replace("\u00a0", " ")


def test_figure_has_a_panel_for_each_quantity_that_exists(folder: Path, tmp_path: Path) -> None:
    report = RaceReport(read_race([folder], baseline="flow"))
    assert report.gradients is not None
    drawn = draw_gradients(report.race, report.gradients, 3.3).figure
    panels = [axes.get_ylabel() for axes in drawn.axes]
    assert panels == [panel.label for panel in PANELS]
    # Three seeds and a mean for each arm, flow's without an auxiliary term; and the line at 1 %.
    assert [len(axes.get_lines()) for axes in drawn.axes] == [9, 9, 12, 8, 12]
    log(write_run(tmp_path / "flow-0", "flow", 0), [plain(step) for step in STEPS])
    report = RaceReport(read_race([tmp_path]))
    assert report.gradients is not None
    alone = draw_gradients(report.race, report.gradients, 3.3).figure
    assert [axes.get_ylabel() for axes in alone.axes] == ["norm, flow loss", "norm of features"]


@pytest.mark.slow
def test_commands_show_the_readings(folder: Path, tmp_path: Path) -> None:
    words = [str(folder), "-o", str(tmp_path / "page.html"), "--baseline", "flow"]
    CliRunner().invoke(report_command, words, catch_exceptions=False)
    page = (tmp_path / "page.html").read_text()
    assert '<section id="gradients">' in page
    cost = page[page.index('<section id="cost">') :]
    assert "gradients" in cost[: cost.index("</section>")]
    words = [str(folder), "-o", str(tmp_path / "figures"), "--baseline", "flow", "--format", "svg"]
    files = CliRunner().invoke(figures, words, catch_exceptions=False).output.split()
    drawn = tmp_path / "figures" / "gradients-narrow.svg"
    assert str(drawn) in files and "alignment's share, %" in drawn.read_text()


def test_race_without_readings_has_no_section(tmp_path: Path) -> None:
    write_run(tmp_path / "flow-0", "flow", 0)
    report = RaceReport(read_race([tmp_path]))
    assert report.gradients is None and gradient_section(report) is None


def test_undefined_values_are_left_out_and_impossible_ones_refused(tmp_path: Path) -> None:
    record = write_run(tmp_path / "sra-0", "sra", 0)
    holes = {"reached": {"blocks": 0, "share": None, "cosine": None}, "share": None, "cosine": None}
    log(record, [event(100, 0.2, 0.1, 0.4) | holes, event(200, 0.2, 0.1, 0.4)])
    _, arms = by_arm(tmp_path)
    assert arms["sra"].means["share"].mean == 0.2
    log(Record(record.path), [event(300, 0.2, 0.1, 0.4) | {"reached": {"share": "much"}}])
    with pytest.raises(UserError, match="has reached that are no table of numbers"):
        _ = Record(record.path).events


def test_readings_are_points_of_the_store_by_path() -> None:
    sent = points(event(100, 0.25, 0.5, 0.4) | {"share": None})
    assert sent["gradients/reached/share"] == 0.25 and "gradients/share" not in sent
    assert {"gradients/norms/auxiliary", "gradients/features/teacher 3", "gradients/losses/align"} <= set(
        sent
    )
    assert all(re.fullmatch(r"[\w.\- :/]+", name) for name in sent)


def test_percent_has_three_digits() -> None:
    assert [percent(x) for x in (0.01, 0.1234, 0.00042)] == ["1 %", "12.3 %", "0.042 %"]
