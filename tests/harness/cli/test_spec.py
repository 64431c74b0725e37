"""`flowrace spec`: one field in detail, a section, a method's settings, and the nearest field for a typo."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from harness.cli.spec import find, spec
from harness.config import registry
from harness.config.spec import RunSpec
from harness.errors import UserError


def printed(*words: str) -> str:
    return CliRunner().invoke(spec, list(words), catch_exceptions=False).output


def test_spec_prints_every_section_and_field() -> None:
    text = printed()
    for section in RunSpec.model_fields:
        assert section in text
    for path in ("train.batch_size", "data.parts.audio.weight", "eval.guidance_low", "method.name"):
        assert path in text


def test_spec_of_a_field_prints_type_default_limits_and_what_it_belongs_to() -> None:
    text = printed("train.steps")
    for line in ("type: int", "default: 400000", "limits: >= 1", "belongs to: horizon", "--set train.steps="):
        assert line in text


@pytest.mark.parametrize("name", ["repa", "self_flow"])
def test_spec_of_a_method_has_every_setting_with_the_defaults_of_its_config(name: str) -> None:
    rows = {row["path"]: row for row in json.loads(printed(f"method.{name}", "--json"))}
    config = registry.load("method", name).Config
    assert {path.split(".")[1] for path in rows} == config.model_fields.keys() - {"name"}
    resolved = config().resolved(RunSpec(method=config()).backbone.model_copy(update={"size": "XL"}))
    layer = "layer" if name == "repa" else "teacher_layer"
    assert rows[f"method.{layer}"]["defaults"]["XL"] == getattr(resolved, layer)


def test_spec_of_a_section_has_its_fields_only() -> None:
    assert [row["path"] for row in find("ema")] == ["ema.decay", "ema.warmup"]


def test_spec_of_a_setting_lists_the_methods_that_have_it() -> None:
    methods = {row["method"] for row in find("method.layer")}
    assert {"repa", "sra2", "dispersive"} <= methods and "flow" not in methods


@pytest.mark.parametrize(
    ("field", "near"),
    [
        ("steps", "train.steps"),
        ("train.stepz", "train.steps"),
        ("method.rep", "method.repa"),
        ("method.repa.layr", "method.repa.layer"),
        ("method.laier", "method.layer"),
    ],
)
def test_spec_rejects_an_unknown_field_with_the_nearest_one(field: str, near: str) -> None:
    with pytest.raises(UserError, match=f"unknown field '{field}'. Did you mean '{near}'"):
        find(field)
