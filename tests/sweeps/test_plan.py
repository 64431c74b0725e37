"""Plans of studies: the same study gives the same runs, and an invalid study is rejected with the reason."""

from __future__ import annotations

import csv
import json
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.assembly.resolve import load_spec
from harness.errors import UserError
from sweeps.plan.plan import StudyPlan, make_plan
from sweeps.plan.study import STUDIES, Study, load_study, run_label
from sweeps.plan.study_folder import write_plan
from tests.conftest import ROOT

BASE = {"name": "s", "base": "digits", "axes": {"seed": [0, 1], "method.name": ["flow", "repa"]}}


def load(table: Mapping[str, Any], overrides: tuple[str, ...] = ()) -> Study:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.toml"
        file.write_text(tomli_w.dumps(table))
        return load_study(str(file), overrides)


def ids(table: Mapping[str, Any], *overrides: str) -> list[str]:
    return [planned.id for planned in make_plan(load(table, overrides)).runs]


def test_plan_varies_the_first_axis_slowest_and_has_ids_of_single_runs() -> None:
    planned_runs = make_plan(load(BASE)).runs
    assert [planned.label for planned in planned_runs] == [
        "flow seed 0",
        "repa seed 0",
        "flow seed 1",
        "repa seed 1",
    ]
    alone = load_spec("digits", ["method.name=repa", "seed=1"])
    assert planned_runs[3].id == alone.id and planned_runs[3].values == {"seed": 1, "method.name": "repa"}


def test_axis_may_hold_methods_with_settings() -> None:
    methods = [{"name": "flow"}, {"name": "self_flow", "mask_ratio": 0.0}, {"name": "self_flow"}]
    planned_runs = make_plan(load(BASE | {"axes": {"method": methods, "seed": [0]}})).runs
    assert [c.label for c in planned_runs] == [
        "flow seed 0",
        "self_flow mask_ratio=0.0 seed 0",
        "self_flow seed 0",
    ]
    assert planned_runs[1].id == load_spec("digits", ["method.name=self_flow", "method.mask_ratio=0.0"]).id


def test_methods_digits_plans_the_arms_of_its_published_curves() -> None:
    planned_runs = make_plan(load_study("methods-digits")).runs
    with open(ROOT / "benchmarks/results/methods-digits/methods-digits-runs.csv", encoding="utf-8") as file:
        published = {(row["method"].partition(" (")[0], int(row["seed"])) for row in csv.DictReader(file)}
    assert {(planned.spec.method.name, planned.spec.seed) for planned in planned_runs} == published
    assert len(planned_runs) == 60


def test_set_applies_to_every_run() -> None:
    planned_runs = make_plan(
        load(BASE | {"set": {"train.steps": 7, "backbone": {"size": "S"}}}, ("eval.samples=32",))
    ).runs
    assert {(c.spec.train.steps, c.spec.backbone.size, c.spec.eval.samples) for c in planned_runs} == {
        (7, "S", 32)
    }


AXES = st.fixed_dictionaries(
    {
        "seed": st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
        "method.name": st.lists(st.sampled_from(["flow", "repa", "self_flow"]), min_size=1, unique=True),
        "train.learning_rate": st.lists(st.floats(1e-5, 1e-2), min_size=1, max_size=2, unique=True),
    }
)
FIXED = {"train.steps": 7, "ema.decay": 0.5, "eval.samples": 16, "time.kind": "logit_normal"}


ENCODERS = {"method.encoder.name": ["local:tiny", "local:small"], "method.layer": [1, 2]}
REPA = BASE | {"axes": {"seed": [0, 1]}, "set": {"method.name": "repa"}}


def test_zipped_axes_vary_together() -> None:
    planned_runs = make_plan(load(REPA | {"zip": {"encoder": ENCODERS}})).runs
    planned_values = [(c.spec.seed, c.spec.method.encoder.name, c.spec.method.layer) for c in planned_runs]
    assert planned_values == [
        (0, "local:tiny", 1),
        (0, "local:small", 2),
        (1, "local:tiny", 1),
        (1, "local:small", 2),
    ]


def test_exclusion_has_a_reason_and_keeps_other_ids(tmp_path: Path) -> None:
    rule = {"reason": "flow has no seeds to spare", "where": {"method.name": "flow", "seed": [1, 2]}}
    full, study = make_plan(load(BASE)).runs, load(BASE | {"exclude": [rule]})
    assert [planned.id for planned in make_plan(study).runs] == [full[0].id, full[1].id, full[3].id]
    write_plan(study, make_plan(study), tmp_path)
    left_out = json.loads((tmp_path / "plan.json").read_text())["excluded"]
    assert left_out == [{"cell": {"seed": 1, "method.name": "flow"}, "reason": rule["reason"]}]
    assert [c.id for c in make_plan(load_study(str(tmp_path / "study.toml"))).runs] == [
        c.id for c in make_plan(study).runs
    ]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(axes=AXES, order=st.permutations(list(FIXED)), data=st.data())
def test_table_order_does_not_change_ids(axes: dict[str, Any], order: list[str], data: st.DataObject) -> None:
    one = ids(BASE | {"axes": axes, "set": FIXED})
    assert one == ids({"set": {path: FIXED[path] for path in order}} | BASE | {"axes": axes})
    permuted = {path: axes[path] for path in data.draw(st.permutations(list(axes)))}
    assert set(one) == set(ids(BASE | {"axes": permuted, "set": FIXED})) and len(set(one)) == len(one)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(axes=AXES, more=st.lists(st.integers(100, 199), min_size=1, max_size=3, unique=True))
def test_longer_axis_keeps_existing_ids(axes: dict[str, Any], more: list[int]) -> None:
    # Seeds vary slowest, so that new runs come last.
    axes = {"seed": axes["seed"], **axes}
    before = ids(BASE | {"axes": axes})
    after = ids(BASE | {"axes": axes | {"seed": axes["seed"] + more}})
    assert after[: len(before)] == before
    assert len(after) * len(axes["seed"]) == len(before) * (len(axes["seed"]) + len(more))


def test_paths_may_be_written_as_nested_tables() -> None:
    nested = {"axes": {"seed": [0, 1], "method": {"name": ["flow", "repa"]}}, "set": {"train": {"steps": 7}}}
    assert ids(BASE | nested) == ids(BASE | {"set": {"train.steps": 7}})


def test_axis_may_hold_tables() -> None:
    arms = [{"name": "flow"}, {"name": "repa", "coefficient": 0.25}]
    planned_runs = make_plan(load(BASE | {"axes": {"method": arms}})).runs
    assert [planned.id for planned in planned_runs] == [
        load_spec("digits", overrides).id
        for overrides in (["method.name=flow"], ["method.name=repa", "method.coefficient=0.25"])
    ]


def test_run_label_has_metrics_only_when_nothing_else_differs() -> None:
    values = {"method": "sra", "seed": 1, "eval.metrics": ["fd:local"]}
    assert run_label(values) == 'sra seed 1 metrics=["fd:local"]'
    assert run_label(values | {"data.video_weight": 0.1}) == "sra seed 1 video_weight=0.1"


def test_base_file_is_found_next_to_the_study(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "digits"\n[train]\nsteps = 9\n')
    (tmp_path / "study.toml").write_text(tomli_w.dumps(BASE | {"base": "mine.toml"}))
    assert {
        planned.spec.train.steps for planned in make_plan(load_study(str(tmp_path / "study.toml"))).runs
    } == {9}


@pytest.mark.parametrize("place", ["studies", "."])
def test_written_study_resumes_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The base is next to the study, or in the working directory; the written study has its absolute path."""
    for name in ("studies", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / place / "mine.toml").write_text('base = "digits"\n[train]\nsteps = 9\n')
    (tmp_path / "studies" / "study.toml").write_text(tomli_w.dumps(BASE | {"base": "mine.toml"}))
    monkeypatch.chdir(tmp_path)
    study = load_study("studies/study.toml")
    write_plan(study, make_plan(study), tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = load_study("../runs/study.toml")
    assert [planned.id for planned in make_plan(again).runs] == [
        planned.id for planned in make_plan(study).runs
    ]


def test_planned_run_is_pinned_to_the_content_of_its_data(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    pytest.importorskip("harness.data.disk.arrays")
    file = tmp_path / "images.npz"
    table = BASE | {"set": {"data.name": "npz", "data.root": str(file)}}
    found = []
    for value in (1, 2):
        numpy.savez(
            file, images=numpy.full((9, 8, 8, 1), value, numpy.uint8), labels=numpy.zeros(9, numpy.int64)
        )
        found.append(ids(table))
    assert not set(found[0]) & set(found[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nme": "x"}, "unknown key 'nme' .*Did you mean 'name'"),
        (
            {"target": {"metrik": "fd:local", "value": 1.0}},
            "unknown key 'target.metrik'.*Did you mean 'metric'",
        ),
        (
            {"target": {"metric": "fd:lokal", "value": 1.0}},
            "unknown target metric 'fd:lokal'.*Did you mean 'fd:local'",
        ),
        ({"target": {"metric": "fd:local", "value": 0.0}}, "target.value = 0.0: .*greater than 0"),
        ({"baseline": "flw"}, "unknown baseline 'flw' .*Did you mean 'flow'"),
        ({"base": "digts"}, "unknown preset 'digts' .*Did you mean 'digits'"),
        ({"name": "../x"}, 'name = "../x"'),
        ({"axes": {"seed": 3}}, "axes.seed = 3: expected a list of values"),
        ({"axes": {"seed": []}}, "axes.seed = "),
        ({"axes": [1]}, r"axes must be a table"),
        ({"zip": 3}, r"zip must be a table of axes"),
        ({"axes": {"sed": [1]}}, "unknown key 'sed'.*Did you mean 'seed'"),
        ({"axes": {"train.stepps": [1]}}, "unknown key 'train.stepps'.*Did you mean 'train.steps'"),
        ({"axes": {"method.name": ["flow", "rep"]}}, "unknown method 'rep' .*Did you mean 'repa'"),
        ({"axes": {"seed": ["a"]}}, 'study s, seed = a: seed = "a"'),
        ({"set": {"seed": 5}}, "'seed' and 'seed' set the same field|'seed' is"),
        ({"set": {"method.name.x": 5}}, "'method.name' and 'method.name.x' set the same field"),
        ({"axes": {"method": [{"name": "flow"}], "method.name": ["flow"]}}, "set the same field"),
        ({"zip": {"a": {"seed": [1, 2]}}}, "'seed' and 'seed' set the same field"),
        (
            {"zip": {"a": {"train.steps": [1, 2], "ema.decay": [0.5]}}},
            "zip.a: every path needs the same number of values; train.steps has 2, ema.decay has 1",
        ),
        ({"zip": {"a": {"train.steps": 1}}}, "zip.a.train.steps"),
        ({"axes": {"method": [{"name": 3}]}}, "unknown method '3'"),
        (
            {"axes": {"method.name": ["flow"]}, "seeds": {"audit": 0}},
            "seeds.audit = 0: expected a number of at least 1",
        ),
        (
            {"axes": {"method.name": ["flow"]}, "seeds": {"tuning": -3}},
            "seeds.tuning = -3: expected a number",
        ),
        ({"exclude": [{"where": {"seed": 1}}]}, "exclude.0.reason"),
        ({"exclude": [{"reason": "x", "where": {"sed": 1}}]}, "unknown axis 'sed'.*Did you mean 'seed'"),
        ({"exclude": [{"reason": "x", "where": {"seed": 9}}]}, "the exclusion 'x' matches no run"),
        ({"exclude": [{"reason": "x", "where": {"seed": [0, 1]}}]}, "excludes every run: x"),
    ],
)
def test_invalid_study_is_rejected_in_one_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make_plan(load(BASE | change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["seed", "runtime.threads"])
def test_two_identical_runs_are_named(path: str) -> None:
    values = [4, 4] if path == "seed" else [1, 2]
    with pytest.raises(UserError, match=rf"identical \([0-9a-f]{{12}}\): \({path} = .*\) and \({path} = "):
        make_plan(load(BASE | {"axes": {path: values}}))


@pytest.mark.parametrize("override", ["seed=5", "method.name=flow"])
def test_override_of_an_axis_is_rejected(override: str) -> None:
    with pytest.raises(UserError, match="is an axis of this study"):
        load(BASE, (override,))


def test_override_inside_an_axis_is_rejected() -> None:
    with pytest.raises(UserError, match="set the same field"):
        load(BASE | {"axes": {"method": [{"name": "flow"}]}}, ("method.name=repa",))


@pytest.mark.parametrize("source", ["digit", "nothing.toml"])
def test_missing_study_is_rejected(source: str) -> None:
    with pytest.raises(UserError, match=r"Did you mean 'digits'|cannot read nothing\.toml: No such file"):
        load_study(source)


def test_study_that_is_not_toml_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("name = \n")
    with pytest.raises(UserError, match="is not TOML"):
        load_study(str(tmp_path / "s.toml"))


def test_written_study_has_the_same_plan(tmp_path: Path) -> None:
    study = load(BASE | {"set": {"train.steps": 7}, "target": {"metric": "fd:local", "value": 3.0}})
    planned_runs = make_plan(study).runs
    write_plan(study, make_plan(study), tmp_path / "s")
    assert [planned.id for planned in make_plan(load_study(str(tmp_path / "s" / "study.toml"))).runs] == [
        c.id for c in planned_runs
    ]
    written = json.loads((tmp_path / "s" / "plan.json").read_text())
    assert written == {
        "runs": [{"id": planned.id, "cell": planned.values, "steps": 7} for planned in planned_runs],
        "excluded": [],
    }


def test_folder_of_another_study_is_rejected(tmp_path: Path) -> None:
    write_plan(load(BASE), StudyPlan([], []), tmp_path)
    before = (tmp_path / "study.toml").read_bytes()
    with pytest.raises(UserError, match="holds the study 's', not 'other'; choose another --out"):
        write_plan(load(BASE | {"name": "other"}), StudyPlan([], []), tmp_path)
    assert (tmp_path / "study.toml").read_bytes() == before


@pytest.mark.parametrize("name", STUDIES.names())
def test_packaged_study_has_a_summary_and_a_plan(name: str) -> None:
    study = load_study(name)
    assert study.name == name and STUDIES.summary(name).endswith(".")
    assert make_plan(study).runs and tomllib.loads(study.to_toml())["base"] == study.base
    # Targets on other data sets are chosen from the runs.
    assert study.target.value is not None or study.base != "digits"


def test_digits_compares_three_objectives_on_three_seeds() -> None:
    planned_runs = make_plan(load_study("digits")).runs
    assert [(planned.spec.seed, planned.spec.method.name) for planned in planned_runs] == [
        (seed, method) for seed in (0, 1, 2) for method in ("flow", "repa", "self_flow")
    ]


def test_axis_of_evaluation_is_one_training_measured_in_several_ways() -> None:
    axes = {"seed": [0, 1], "method.name": ["flow"], "eval.guidance": [1.0, 1.5, 2.0]}
    first, second = make_plan(load(BASE | {"axes": axes})).runs
    assert [run.values for run in (first, second)] == [
        {"seed": seed, "method.name": "flow"} for seed in (0, 1)
    ]
    for run in (first, second):
        assert [spec.eval.guidance for spec in run.variants] == [1.0, 1.5, 2.0]
        assert {spec.id for spec in run.variants} == {run.id}


def test_axis_of_lengths_is_rejected_because_the_longest_contains_the_others() -> None:
    axes = {"seed": [0], "method.name": ["flow"], "train.steps": [10, 30]}
    with pytest.raises(UserError, match=r"train\.steps = 10 is the beginning of train\.steps = 30"):
        make_plan(load(BASE | {"axes": axes}))


def test_lengths_are_separate_runs_when_the_learning_rate_decays_to_the_end() -> None:
    axes = {"seed": [0], "train.steps": [10, 30]}
    runs = make_plan(load(BASE | {"axes": axes, "set": {"train.decay": "linear"}})).runs
    assert len({run.id for run in runs}) == 2
