"""Tables of a study file: settings by method, labels, and the forms of a target."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from harness.assembly.resolve import load_spec
from harness.errors import UserError
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.study import Study, load_study
from sweeps.tune.results import audit_study
from sweeps.tune.tuner import make_tuning_study, trial_runs

BASE = {
    "name": "s",
    "base": "digits",
    "baseline": "flow",
    "axes": {"seed": [0], "method.name": ["flow", "repa", "self_flow"]},
    "set": {"train.steps": 60, "eval.every": 20},
}


Load = Callable[..., Study]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(table: Mapping[str, Any], *overrides: str) -> Study:
        file = tmp_path / "study.toml"
        file.write_text(tomli_w.dumps(table))
        return load_study(str(file), overrides)

    return load


def by_method(study: Study) -> dict[str, PlannedRun]:
    return {run.spec.method.name: run for run in make_plan(study).runs}


def test_settings_of_a_method_apply_to_its_arms_only(load: Load) -> None:
    plain = by_method(load(BASE))
    changed = by_method(load(BASE | {"methods": {"repa": {"layer": 3, "encoder": {"name": "local:small"}}}}))
    assert changed["repa"].spec.method.layer == 3
    assert changed["repa"].spec.method.encoder.name == "local:small"
    assert [changed[name].id for name in ("flow", "self_flow")] == [
        plain[name].id for name in ("flow", "self_flow")
    ]


def test_settings_of_a_method_apply_to_the_term_of_a_stack(load: Load) -> None:
    """The stack's own table is taken before those of its terms, and the axis before both."""
    methods = {
        "repa": {"layer": 3, "encoder": {"name": "random:small"}},
        "tread": {"rate": 0.25},
        "repa+tread": {"tread": {"rate": 0.75}},
    }
    axes = {"axes": {"seed": [0], "method.name": ["flow", "tread", "repa+tread"]}}
    study = load(BASE | axes | {"methods": methods, "labels": {"repa+tread": "both"}})
    found = by_method(study)
    assert found["tread"].spec.method.rate == 0.25
    stack = found["repa+tread"].spec.method
    assert (stack.repa.layer, stack.repa.encoder.name, stack.tread.rate) == (3, "random:small", 0.75)
    words = ["method.name=repa+tread", "method.repa.layer=3", "method.repa.encoder.name=random:small"]
    words += ["method.tread.rate=0.75", "train.steps=60", "eval.every=20"]
    assert found["repa+tread"].id == load_spec("digits", words).id
    one = {"axes": {"method": [{"name": "repa+tread", "tread": {"rate": 0.1}}]}, "baseline": "repa+tread"}
    stack = by_method(load(BASE | one | {"methods": methods}))["repa+tread"].spec.method
    assert (stack.repa.layer, stack.tread.rate) == (3, 0.1)


def test_run_with_settings_of_its_method_has_the_id_of_the_same_single_run(load: Load) -> None:
    planned = by_method(load(BASE | {"methods": {"repa": {"layer": 3}}}))["repa"]
    words = ["train.steps=60", "eval.every=20", "method.name=repa", "method.layer=3"]
    assert planned.id == load_spec("digits", words).id


def test_settings_of_a_method_stand_between_the_preset_and_set_and_axes(load: Load, tmp_path: Path) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text(
        'base = "digits"\n[method]\nname = "repa"\nlayer = 1\n[methods.repa]\ncoefficient = 0.1\n'
    )
    axes = {"axes": {"method.name": ["repa"]}, "baseline": "repa"}
    table = BASE | axes | {"base": str(preset), "methods": {"repa": {"layer": 2, "coefficient": 0.2}}}
    assert by_method(load(table))["repa"].spec.method.layer == 2
    assert by_method(load(table))["repa"].spec.method.coefficient == 0.2
    over = table | {"set": {"method.layer": 3}}
    assert by_method(load(over))["repa"].spec.method.layer == 3
    first = over | {"set": {}, "axes": {"method": [{"name": "repa", "layer": 4}]}}
    method = by_method(load(first))["repa"].spec.method
    assert (method.layer, method.coefficient) == (4, 0.2)


def test_set_of_a_method_field_changes_the_table_of_the_method(load: Load) -> None:
    table = BASE | {"methods": {"repa": {"layer": 3}}}
    study = load(table, "methods.repa.layer=2", "methods.self_flow.mask_ratio_audio=0.4")
    assert study.methods == {"repa": {"layer": 2}, "self_flow": {"parts": {"audio": {"mask_ratio": 0.4}}}}
    assert by_method(study)["repa"].spec.method.layer == 2


def test_name_of_the_baseline_in_a_target_means_the_baseline(load: Load) -> None:
    study = load(BASE | {"target": {"at": "flow@40"}})
    assert study.target.at == "baseline@40" and len(make_plan(study).runs) == 3


TARGETS = [
    {"value": 8.0},
    {"values": [8.0, 10.0]},
    {"at": "baseline@40"},
    {"share_of_final": 0.9},
    {"values": [8.0, 10.0], "until": "reached", "patience": 2, "margin": 0.01},
]


@pytest.mark.parametrize("target", TARGETS)
def test_study_with_every_table_reads_back_from_its_toml(
    load, target: dict[str, Any], tmp_path: Path
) -> None:
    tables: dict[str, Any] = {"report": {"across": "cells"}}
    tables |= {"methods": {"repa": {"layer": 3}}, "labels": {"repa": "REPA", "repa (layer = 2)": "REPA, 2"}}
    study = load(BASE | tables | {"target": {"metric": "fd:local", **target}})
    again = tmp_path / "again.toml"
    again.write_text(study.to_toml())
    assert load_study(str(again)) == study
    assert tomllib.loads(study.to_toml())["target"] == {"metric": "fd:local", **target}
    assert [run.id for run in make_plan(study).runs] == [
        run.id for run in make_plan(load(BASE | {"methods": tables["methods"]})).runs
    ]


def test_trials_and_audit_of_a_tuned_study_keep_the_settings_of_each_method(
    load: Load, tmp_path: Path
) -> None:
    tables: dict[str, Any] = {"labels": {"repa": "REPA"}, "target": {"at": "flow@40"}, "seeds": {"tuning": 2}}
    tables["tune"] = {"space": {"train.learning_rate": {"low": 1e-3, "high": 1e-2}}}
    axes = {"axes": {"seed": [0], "method.name": ["flow", "repa"]}, "methods": {"repa": {"layer": 3}}}
    tuning = make_tuning_study(load(BASE | tables | axes), tmp_path)
    for arm in tuning.arms:
        specs = [run.spec for run in trial_runs(tuning.study, arm, {}, steps=10)]
        assert {spec.train.steps for spec in specs} == {10}
        layers = {spec.method.model_dump().get("layer") for spec in specs}
        assert layers == {3 if arm.method == "repa" else None}
    audit = audit_study(tuning, {"flow": {}, "repa": {"method.coefficient": 0.25}})
    assert by_method(audit)["repa"].spec.method.layer == 3 and audit.target.at == "baseline@40"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"methods": {"rep": {"layer": 2}}}, r"\[methods.NAME\] of study s: 'rep'.*Did you mean 'repa'"),
        ({"methods": {"repa+tred": {"repa": {}}}}, "unknown method 'tred'"),
        (
            {"methods": {"repa+tread": {"repa": {"layer": 2}}}},
            r"'repa\+tread' \(known: flow, repa, self_flow\)",
        ),
        ({"methods": {"haste": {"layer": 2}}}, r"'haste' \(known: flow, repa, self_flow\)"),
        (
            {"methods": {"repa": {"layr": 2}}},
            r"\[methods.repa\] layr: repa has no such setting. Did you mean 'layer'\? "
            "See: flowrace spec method.repa",
        ),
        ({"methods": {"repa": {"encoder": {"nam": "x"}}}}, r"encoder.nam: .*Did you mean 'encoder.name'"),
        ({"methods": {"repa": 3}}, r"methods.repa = 3: expected a table \[methods.repa\]"),
        ({"methods": {"repa": {"layer": 99}}}, "layer = 99: backbone nano has layers 1 to 6"),
        ({"labels": {"rep": "REPA"}}, r"arm in \[labels\] of study s: 'rep'.*Did you mean 'repa'"),
        ({"labels": {"haste": "HASTE"}}, r"'haste' \(known: flow, repa, self_flow\)"),
        ({"labels": {"repa": ""}}, r'labels.repa = "": .*at least 1 character'),
        ({"labels": {"repa": "A", "flow": "A"}}, r"shows 'repa' and 'flow' as 'A'"),
        ({"target": {"value": 8.0, "at": "flow@20"}}, "value and at each set the target; keep one"),
        ({"target": {"values": []}}, "target.values = .*at least 1 item"),
        ({"target": {"values": [8.0, -1.0]}}, "target.values.1 = -1.0: .*greater than 0"),
        (
            {"target": {"at": "baseline"}},
            'target.at = "baseline": expected baseline@STEP, for example baseline@400',
        ),
        ({"target": {"at": "baseline@0"}}, "expected baseline@STEP"),
        (
            {"target": {"at": "baseline@50"}},
            r"target.at = baseline@50: flow seed 0 is not evaluated at step 50, but at 20, 40, 60; choose",
        ),
        (
            {"target": {"at": "repa@40"}},
            "target.at = repa@40: a target is a value of the baseline; write baseline@40",
        ),
        ({"report": {"across": "arms"}}, "report.across = \"arms\": .*'pooled' or 'cells'"),
        ({"target": {"share_of_final": 1.0}}, "target.share_of_final = 1.0: .*less than 1"),
        ({"target": {"share_of_final": 0}}, "target.share_of_final = 0.*greater than 0"),
        ({"target": {"value": 8.0, "patience": 2}}, 'patience has no effect without until = "reached"'),
        ({"target": {"at": "baseline@40", "until": "reached"}}, "needs a target that is a number"),
        (
            {"target": {"value": 8.0, "until": "reached"}},
            'needs a metric; set metric, for example "fd:local"',
        ),
        (
            {"target": {"metric": "success@pusht", "value": 0.5, "until": "reached"}},
            "needs a metric that falls and is recorded as it is named, not success@pusht",
        ),
        (
            {"target": {"metric": "fd:local", "value": 8.0, "until": "reached", "patience": 0}},
            "target.patience = 0: .*greater than or equal to 1",
        ),
        ({"target": {"until": "decided"}}, "target.until = \"decided\": .*'end' or 'reached'"),
    ],
)
def test_invalid_table_is_rejected(load: Load, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make_plan(load(BASE | change))


@pytest.mark.parametrize("target", [{"at": "baseline@40"}, {"share_of_final": 0.9}])
def test_target_of_a_baseline_needs_a_baseline(load: Load, target: dict[str, Any]) -> None:
    table = {key: value for key, value in BASE.items() if key != "baseline"}
    with pytest.raises(UserError, match="needs a baseline; add a line baseline = NAME"):
        make_plan(load(table | {"target": target}))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("target.value=5", r"'target' belongs to the study.*edit \[target\].*flowrace report DIR --target 5"),
        ("target.at=flow@20", r"'target' belongs to the study.*edit \[target\] in the study's file$"),
        ("baseline=repa", r"edit baseline in the study's file; .*flowrace report DIR --baseline repa"),
        ("labels.repa=REPA", r"'labels' belongs to the study"),
        ("seeds.audit=3", r"'seeds' belongs to the study"),
    ],
)
def test_set_of_the_study_itself_is_rejected_with_what_to_type(
    load: Load, override: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        load(BASE, override)
