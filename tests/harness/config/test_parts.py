"""Settings of parts: one table per part. Flat names of version 0.1.0 are accepted; ids do not change."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from harness.assembly.resolve import load_spec
from harness.config.data_spec import DataParts, DataSpec
from harness.config.parts import FLAT_NAMES
from harness.config.section import HASHED_IF_SET, Section
from harness.config.spec import canonical
from harness.errors import UserError
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study

SPELLINGS = {
    "data.video_weight": "data.parts.video.weight",
    "data.audio_weight": "data.parts.audio.weight",
    "data.video_alone": "data.parts.video.alone",
    "data.audio_alone": "data.parts.audio.alone",
    "backbone.patch_sound": "backbone.parts.audio.patch",
    "method.mask_ratio_audio": "method.parts.audio.mask_ratio",
}
SELF_FLOW = ("method.name=self_flow",)


def spec_of(path: str, value: float) -> str:
    return load_spec("bounce", [*SELF_FLOW, f"{path}={value}"]).id


def test_flat_names_all_have_a_table() -> None:
    flat = {f"{section}.{name}" for section, names in FLAT_NAMES.items() for name in names}
    assert flat == set(SPELLINGS)


@pytest.mark.parametrize("flat", SPELLINGS)
def test_both_names_of_a_setting_give_one_run_id(flat: str) -> None:
    value = 8 if flat == "backbone.patch_sound" else 0.25
    assert spec_of(flat, value) == spec_of(SPELLINGS[flat], value) != load_spec("bounce", SELF_FLOW).id


@pytest.mark.parametrize("flat", SPELLINGS)
def test_file_with_both_names_of_a_setting_is_rejected(flat: str, tmp_path: Path) -> None:
    value = 8 if flat == "backbone.patch_sound" else 0.25
    section, _, name = flat.partition(".")
    other = SPELLINGS[flat].removeprefix(f"{section}.")
    head = 'name = "self_flow"\n' if section == "method" else ""
    (tmp_path / "own.toml").write_text(
        f'base = "bounce"\n[{section}]\n{head}{name} = {value}\n{other} = {value}\n'
    )
    with pytest.raises(UserError, match=f"{name} and {other} set the same field"):
        load_spec(str(tmp_path / "own.toml"))


def test_flat_name_overrides_the_table_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text(
        'base = "bounce"\n[backbone]\npatch_sound = 8\n[methods.self_flow]\nmask_ratio_audio = 0.25\n'
    )
    spec = load_spec(str(tmp_path / "old.toml"), SELF_FLOW)
    assert spec.backbone.parts.audio.patch == 8
    assert spec.method.model_dump()["mask_ratio_audio"] == 0.25
    table = 'method={name = "self_flow", mask_ratio_audio = 0.125}'
    assert load_spec("bounce", [table]).id == spec_of("method.parts.audio.mask_ratio", 0.125)


def test_run_directories_keep_the_flat_names(tmp_path: Path) -> None:
    overrides = [*SELF_FLOW, "data.parts.audio.weight=0.75", "method.parts.audio.mask_ratio=0.25"]
    spec = load_spec("bounce", overrides)
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    written = tomllib.loads(spec.to_toml())
    assert written["data"]["audio_weight"] == 0.75 and written["data"]["video_weight"] == 0.5
    assert written["backbone"]["patch_sound"] == 4 and written["method"]["mask_ratio_audio"] == 0.25
    assert all("parts" not in section for section in written.values() if isinstance(section, dict))
    assert load_spec(str(tmp_path)) == spec


def test_setting_of_a_new_part_is_hashed_by_its_table() -> None:
    class TextPart(Section):
        weight: float = Field(0.5, json_schema_extra=HASHED_IF_SET)

    class MoreParts(DataParts):
        text: TextPart = TextPart()

    class MoreData(DataSpec):
        flat_names: ClassVar = FLAT_NAMES["data"]
        parts: DataParts = MoreParts()

    assert json.loads(canonical(MoreData())) == json.loads(canonical(DataSpec()))
    given = MoreData(parts=MoreParts(text=TextPart(weight=0.25)))
    assert json.loads(canonical(given))["parts"] == {"text": {"weight": 0.25}}


def test_unknown_part_is_rejected_with_the_nearest_one() -> None:
    with pytest.raises(
        UserError, match=r"unknown key 'data\.parts\.adio'.*Did you mean 'data.parts.audio.weight'"
    ):
        load_spec("bounce", ["data.parts.adio.weight=0.5"])


def study(tmp_path: Path, text: str) -> str:
    file = tmp_path / "study.toml"
    file.write_text(f'# One.\nname = "one"\nbase = "bounce"\n{text}')
    return str(file)


def test_axis_under_either_name_plans_the_same_runs(tmp_path: Path) -> None:
    axes = '[axes]\nseed = [0]\n"{}" = [0.25, 0.75]\n'
    plans = [
        [cell.id for cell in make_plan(load_study(study(tmp_path, axes.format(path)))).runs]
        for path in ("data.audio_weight", "data.parts.audio.weight")
    ]
    assert plans[0] == plans[1] and len(set(plans[0])) == 2


def test_study_that_sets_its_axis_under_the_other_name_is_rejected(tmp_path: Path) -> None:
    text = '[axes]\n"data.audio_weight" = [0.25, 0.75]\n[set]\n"data.parts.audio.weight" = 0.5\n'
    with pytest.raises(UserError, match="set the same field"):
        load_study(study(tmp_path, text))
    axis = study(tmp_path, '[axes]\n"data.audio_weight" = [0.25, 0.75]\n[set]\n')
    with pytest.raises(UserError, match="is an axis of this study"):
        load_study(axis, ["data.parts.audio.weight=0.5"])
