"""The reader of study folders, on files in the format that sweeps and searches write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.records.record import Record
from harness.records.study_folder import PlanEntry, PlanExclusion, StudyFolder, StudySettings

PLAN = {
    "runs": [{"id": "a", "cell": {"seed": 0}}, {"id": "b", "cell": {"seed": 1}}],
    "excluded": [{"cell": {"seed": 2}, "reason": "no data"}],
}
STUDY = """name = "digits"
baseline = "flow"
[target]
metric = "fd:local"
value = 12
"""


def folder(path: Path, study: str = STUDY) -> StudyFolder:
    (path / "study.toml").write_text(study)
    (path / "plan.json").write_text(json.dumps(PLAN))
    return StudyFolder(path)


def test_study_folder_reads_study_and_plan(tmp_path: Path) -> None:
    found = folder(tmp_path)
    assert found.name == "digits"
    assert found.settings == StudySettings("digits", "flow", "fd:local", 12.0)
    assert found.required_plan.runs == (PlanEntry("a", {"seed": 0}), PlanEntry("b", {"seed": 1}))
    assert found.required_plan.exclusions == (PlanExclusion({"seed": 2}, "no data"),)
    assert found.records == [Record(tmp_path / "a"), Record(tmp_path / "b")]
    assert found.log_file("a") == tmp_path / "logs" / "a.log"


def test_study_folder_without_a_study_is_named_after_the_folder_and_complete(tmp_path: Path) -> None:
    found = StudyFolder(tmp_path)
    assert (found.name, found.plan, found.records) == (tmp_path.name, None, [])
    assert found.settings == StudySettings() and found.is_complete([])


def test_study_folder_is_complete_when_every_planned_run_has_a_record(tmp_path: Path) -> None:
    found, records = folder(tmp_path), [Record(tmp_path / name) for name in "abc"]
    assert found.is_complete(records) and not found.is_complete(records[:1])


def test_target_of_ignores_another_metric() -> None:
    settings = StudySettings(metric="fd:local", target=12.0)
    assert settings.target_of("fd:local") == 12.0 and settings.target_of("kid:local") is None
    assert StudySettings(target=12.0).target_of("kid:local") == 12.0


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", '{"runs": [{}]}', '{"runs": [{"id": "a"}]}', '{"runs": 3}']
)
def test_broken_plan_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan\.json is not a plan: expected .* Rerun the study's sweep"):
        _ = StudyFolder(tmp_path).plan


def test_required_plan_names_the_command_for_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no study: no plan\.json in it; give the --out folder"):
        _ = StudyFolder(tmp_path).required_plan
    (tmp_path / "tune.toml").write_text(STUDY)
    with pytest.raises(UserError, match=rf"holds a search .*: flowrace tune {tmp_path}/tune.toml --out"):
        _ = StudyFolder(tmp_path).required_plan
    assert StudyFolder(tmp_path).search["name"] == "digits"


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ("name = 3", r"name = 3: expected a string"),
        ('target = "fd:local"', r"target must be a table, for example \[target\]"),
        ("target.value = -1.0", r"target\.value = -1\.0: expected a number above 0"),
        ("target.value = true", r"target\.value = True: expected a number above 0"),
        ("target.metric = 3", r"target\.metric = 3: expected a string"),
    ],
)
def test_settings_of_a_wrong_type_are_rejected(tmp_path: Path, study: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = folder(tmp_path, study).settings


def test_target_of_success_is_read_as_that_of_its_shortfall(tmp_path: Path) -> None:
    success = STUDY.replace("fd:local", "success@pusht").replace("12", "0.75")
    assert folder(tmp_path, success).settings == StudySettings("digits", "flow", "1-success@pusht", 0.25)
    with pytest.raises(UserError, match="expected a share below 1"):
        _ = folder(tmp_path, STUDY.replace("fd:local", "success@pusht")).settings
