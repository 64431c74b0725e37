"""Target rules: their forms, and their values against closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.errors import UserError
from harness.records.study_folder import StudyFolder
from harness.records.targets import (
    TargetRule,
    antitonic,
    baseline_records,
    falling_rules,
    parse_targets,
    target_value,
)
from tests.reports.synthetic import write_run

STEPS = np.array([100.0, 200.0, 400.0, 800.0])


def fits(*scales: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return power laws scale * step ** -0.5."""
    return [(STEPS, scale * STEPS**-0.5) for scale in scales]


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("8.0", (TargetRule(value=8.0),)),
        ("8,10", (TargetRule(value=8.0), TargetRule(value=10.0))),
        ("baseline@400", (TargetRule(step=400),)),
        ("baseline@400_000", (TargetRule(step=400_000),)),
        ("flow@400", (TargetRule(step=400, arm="flow"),)),
        ("90%", (TargetRule(share=0.9),)),
        ("90 %, 8", (TargetRule(share=0.9), TargetRule(value=8.0))),
        (8, (TargetRule(value=8.0),)),
    ],
)
def test_parse_targets_accepts_every_form(text: str, rules: tuple[TargetRule, ...]) -> None:
    assert parse_targets(text) == rules
    assert parse_targets(",".join(map(str, rules))) == rules


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("low", "--target low: expected a target, for example 8.0, a list 8,10, baseline@400, or 90%"),
        ("baseline@0", "expected a target"),
        ("110%", "expected a share above 0 % and up to 100 %"),
        ("0%", "expected a share above 0 % and up to 100 %"),
        ("8,,10", "expected a target"),
        ("-1", "target -1: expected a number above 0"),
        ("inf", "target inf: expected a number above 0"),
    ],
)
def test_parse_targets_names_the_value_and_the_allowed_forms(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        parse_targets(text)


def test_baseline_at_step_is_the_median_over_seeds_in_logs_between_evaluations() -> None:
    """Scales 90, 100 and 140: the median seed has 100 / sqrt(300) at step 300."""
    found = target_value(TargetRule(step=300), fits(140.0, 90.0, 100.0))
    assert found == pytest.approx(100 / 300**0.5)
    with pytest.raises(
        UserError, match=r"baseline@900: .* on both sides of step 900; give a step from 100 to 800"
    ):
        target_value(TargetRule(step=900), fits(1.0))


def test_share_of_final_is_measured_from_the_first_evaluation() -> None:
    """From 10 at step 100 to 100 / sqrt(800) at step 800, of which 90 % are made."""
    first, last = 10.0, 100 / 800**0.5
    assert target_value(TargetRule(share=0.9), fits(100.0)) == pytest.approx(first - 0.9 * (first - last))
    assert target_value(TargetRule(share=1.0), fits(100.0)) == pytest.approx(last)
    assert target_value(TargetRule(share=0.9), []) is None


def test_antitonic_pools_adjacent_violators_in_logs() -> None:
    """2 and 8 are pooled to their geometric mean."""
    assert antitonic(np.array([9.0, 2.0, 8.0, 1.0])) == pytest.approx([9.0, 4.0, 4.0, 1.0])


def test_baseline_records_are_those_of_the_cell(tmp_path: Path) -> None:
    runs = {
        (method, rate, seed): write_run(
            tmp_path / f"{method}-{rate}-{seed}", method, seed, set_={"train.learning_rate": rate}
        )
        for method in ("flow", "repa")
        for rate in (0.1, 0.2)
        for seed in (0, 1)
    }
    found = baseline_records(runs["repa", 0.2, 0], list(runs.values()), "flow")
    assert [run.id for run in found] == ["flow-0.2-0", "flow-0.2-1"]


def test_baseline_of_a_study_in_two_stages_starts_from_initial_weights(tmp_path: Path) -> None:
    runs = {}
    for episodes in (50, 200):
        for arm in ("", "flow", "repa"):
            for seed in (0, 1):
                start = {"start.arm": arm, "start.run": f"{arm}{seed}", "start.run_step": 9} if arm else {}
                name = f"{arm or 'scratch'}-{episodes}-{seed}"
                runs[name] = write_run(tmp_path / name, seed=seed, set_={"data.episodes": episodes, **start})
    for arm in ("scratch", "flow", "repa"):
        found = baseline_records(runs[f"{arm}-200-0"], list(runs.values()), "flow")
        assert [run.id for run in found] == ["scratch-200-0", "scratch-200-1"]
    pretrained = [run for name, run in runs.items() if not name.startswith("scratch")]
    found = baseline_records(runs["repa-50-0"], pretrained, "flow")
    assert [run.id for run in found] == ["repa-50-0", "repa-50-1"]


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("value = 8", (TargetRule(value=8.0),)),
        ("values = [8, 10.5]", (TargetRule(value=8.0), TargetRule(value=10.5))),
        ('at = "baseline@400"', (TargetRule(step=400),)),
        ("share_of_final = 0.9", (TargetRule(share=0.9),)),
        ("", ()),
    ],
)
def test_study_file_gives_the_rules_of_its_target(tmp_path: Path, text: str, rules: tuple) -> None:
    (tmp_path / "study.toml").write_text(f'[target]\nmetric = "fd"\n{text}\n')
    settings = StudyFolder(tmp_path).settings
    assert settings.rules_of("fd") == rules and settings.rules_of("kid") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("value = 8\nvalues = [8]", "target has value and values; give one of them"),
        ("values = []", "target.values = \\[\\]: expected a list of numbers"),
        ("values = [8, -1]", "target.values = -1: expected a number above 0"),
        ('at = "repa@0"', "target.at = 'repa@0': expected \"ARM@STEP\""),
        ("share_of_final = 90", "target.share_of_final = 90: expected a share"),
        ("share_of_final = true", "target.share_of_final = True: expected a number"),
    ],
)
def test_study_file_names_invalid_targets(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "study.toml").write_text(f"[target]\n{text}\n")
    with pytest.raises(UserError, match=message):
        _ = StudyFolder(tmp_path).settings


def test_study_file_gives_labels_and_the_summary_of_cells(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('[labels]\nrepa = "REPA"\n[report]\nacross = "cells"\n')
    settings = StudyFolder(tmp_path).settings
    assert (dict(settings.labels), settings.across) == ({"repa": "REPA"}, "cells")
    for text, message in (
        ("labels = 3", "labels must be names"),
        ("[report]\nacross = 1", "report.across = 1"),
    ):
        (tmp_path / "study.toml").write_text(text)
        with pytest.raises(UserError, match=message):
            _ = StudyFolder(tmp_path).settings


def test_target_of_success_is_reached_as_its_shortfall_falls() -> None:
    rules = parse_targets("0.8,baseline@400,90%")
    found = falling_rules("success@open-and-place", rules)
    assert [rule.value for rule in found] == [0.2, None, None] and found[1:] == rules[1:]
    for text in ("1", "1.2"):
        with pytest.raises(UserError, match=f"target {text} of success@pusht: expected a share below 1"):
            falling_rules("success@pusht", parse_targets(text))
    assert falling_rules("1-success@open-and-place", rules) == falling_rules("fd:local", rules) == rules
