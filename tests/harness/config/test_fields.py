"""The fields of a spec: what each belongs to, against the run id; suggestions for mistyped paths."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from harness.config import registry
from harness.config.fields import belongs, field_paths, in_words, method_fields, nearest, spec_fields
from harness.config.method_config import MethodConfig
from harness.config.parts import nested_setting
from harness.config.spec import RunSpec, canonical
from harness.config.tables import set_path

REPA = registry.load("method", "repa").Config
OTHER = {
    "int": 7,
    "float": 0.25,
    "bool": True,
    "str": "x",
    "list of str": ("kid",),
    "table of str": {"a": "b"},
}


GUIDED = "eval.method_guidance_"


def changed(path: str, value: object) -> RunSpec:
    """Return the default spec with one field changed, without the checks of `resolve`."""
    table: dict[str, Any] = {}
    set_path(table, *nested_setting(path, value))
    if path == "method.schedule.decay":
        # A decay needs an end.
        table["method"]["schedule"]["until"] = 9
    if path.startswith(GUIDED):
        # An interval without guidance has no effect.
        table["eval"]["method_guidance"] = 2.0
    if path.startswith("method.encoder."):
        # A table of an encoder names it.
        table["method"]["encoder"].setdefault("name", REPA().encoder.name)
    method = REPA.model_validate(table.pop("method", {}))
    return RunSpec.model_validate(table | {"method": method})


def test_field_belongs_to_execution_exactly_if_it_changes_no_run_id() -> None:
    default, guided = canonical(RunSpec(method=REPA())), canonical(changed("eval.method_guidance", 2.0))
    for field in [*spec_fields(), *method_fields(REPA)]:
        base = field.type.removesuffix(" or none")
        if field.choices:
            others = [value for value in field.choices if value != field.default]
            other = int(others[0]) if others and others[0].isdigit() else next(iter(others), None)
        elif field.path == "train.betas":
            other = (0.5, 0.5)
        else:
            other = not field.default if base == "bool" else OTHER.get(base)
        if other is None:
            continue
        before = guided if field.path.startswith(GUIDED) else default
        assert (canonical(changed(field.path, other)) == before) == (field.belongs == "execution"), field.path


def test_evaluation_and_horizon_are_the_fields_of_eval_and_the_number_of_steps() -> None:
    by_kind = {field.path: field.belongs for field in spec_fields()}
    assert by_kind["train.steps"] == "horizon" and list(by_kind.values()).count("horizon") == 1
    assert {path.partition(".")[0] for path, kind in by_kind.items() if kind == "evaluation"} == {"eval"}
    assert by_kind["eval.batch_size"] == by_kind["train.keep_checkpoints"] == "execution"


def test_settings_of_a_method_belong_to_the_trajectory_except_places_of_weights() -> None:
    assert belongs("method.layer", REPA) == belongs("method.encoder.sha256", REPA) == "trajectory"
    assert belongs("method.encoder.weights", REPA) == "execution"


@pytest.mark.parametrize("name", ["", *registry.METHODS])
def test_every_field_has_a_type_and_a_meaning(name: str) -> None:
    fields = method_fields(registry.load("method", name).Config) if name else spec_fields()
    lacking = [field.path for field in fields if not field.meaning or not field.type]
    assert fields and lacking == []


def test_limits_and_choices_are_those_of_the_model() -> None:
    fields = {field.path: field for field in spec_fields()}
    assert fields["data.held_out"].limits == ">= 0, < 1" and fields["train.betas"].limits == "each >= 0, < 1"
    assert fields["eval.labels"].choices == ("balanced", "random")
    assert fields["data.frames"].type == "int or none" and fields["data.frames"].in_id == "if set"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("steps", ["train.steps"]),
        ("layer", ["text.layer", "method.layer"]),
        ("batch_size", ["train.batch_size", "eval.batch_size"]),
        ("train.guidance", ["eval.guidance"]),
        ("train.stepz", ["train.steps"]),
        ("trian.steps", ["train.steps"]),
        ("learning_rte", ["train.learning_rate"]),
        ("data.parts.adio.weight", ["data.parts.audio.weight"]),
        ("nonsense_entirely", []),
    ],
)
def test_mistyped_path_has_the_nearest_fields(path: str, expected: list[str]) -> None:
    assert nearest(path, field_paths(REPA)) == expected


def test_suggestion_lists_every_candidate() -> None:
    assert in_words(["a.b", "c.b"]) == " Did you mean 'a.b' or 'c.b'?" and in_words([]) == ""


def test_fields_of_a_class_without_source_have_no_meaning() -> None:
    class Local(MethodConfig):
        name: Literal["local"] = "local"
        share: float = 0.5

    fields = {field.path: field for field in method_fields(Local)}
    assert fields["method.share"].default == 0.5 and fields["method.share"].meaning == ""
    assert fields["method.schedule.until"].meaning
