"""Planning is exact: the same study gives the same runs, and what cannot be a study says why."""

from __future__ import annotations

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
from harness.config import registry
from harness.errors import UserError
from sweeps.plan.plan import Plan, plan, whole_plan, write_plan
from sweeps.plan.study import STUDIES, Study, label, load_study

BASE = {"name": "s", "base": "digits", "axes": {"seed": [0, 1], "method.name": ["flow", "repa"]}}


def load(table: Mapping[str, Any], overrides: tuple[str, ...] = ()) -> Study:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.toml"
        file.write_text(tomli_w.dumps(table))
        return load_study(str(file), overrides)


def ids(table: Mapping[str, Any], *overrides: str) -> list[str]:
    return [cell.id for cell in plan(load(table, overrides))]


def test_the_first_axis_varies_slowest_and_ids_are_those_of_single_runs() -> None:
    cells = plan(load(BASE))
    assert [cell.label for cell in cells] == ["flow seed 0", "repa seed 0", "flow seed 1", "repa seed 1"]
    alone = load_spec("digits", ["method.name=repa", "seed=1"])
    assert cells[3].id == alone.id and cells[3].values == {"seed": 1, "method.name": "repa"}


def test_an_axis_of_methods_with_settings() -> None:
    methods = [{"name": "flow"}, {"name": "self_flow", "mask_ratio": 0.0}, {"name": "self_flow"}]
    cells = plan(load(BASE | {"axes": {"method": methods, "seed": [0]}}))
    assert [c.label for c in cells] == ["flow seed 0", "self_flow mask_ratio=0.0 seed 0", "self_flow seed 0"]
    assert cells[1].id == load_spec("digits", ["method.name=self_flow", "method.mask_ratio=0.0"]).id


def test_every_method_races_in_methods_digits() -> None:
    cells = plan(load_study("methods-digits"))
    assert {cell.spec.method.name for cell in cells} == {*registry.METHODS}
    assert len(cells) == 60 and {cell.spec.seed for cell in cells} == {0, 1, 2}


def test_fixed_values_reach_every_run_and_stay_below_the_axes() -> None:
    cells = plan(load(BASE | {"set": {"train.steps": 7, "backbone": {"size": "S"}}}, ("eval.samples=32",)))
    assert {(c.spec.train.steps, c.spec.backbone.size, c.spec.eval.samples) for c in cells} == {(7, "S", 32)}


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


def test_zipped_axes_go_together() -> None:
    cells = plan(load(REPA | {"zip": {"encoder": ENCODERS}}))
    asked = [(c.spec.seed, c.spec.method.encoder.name, c.spec.method.layer) for c in cells]
    assert asked == [(0, "local:tiny", 1), (0, "local:small", 2), (1, "local:tiny", 1), (1, "local:small", 2)]


def test_what_is_left_out_has_a_reason_and_the_rest_keeps_its_ids(tmp_path: Path) -> None:
    rule = {"reason": "flow has no seeds to spare", "where": {"method.name": "flow", "seed": [1, 2]}}
    whole, study = plan(load(BASE)), load(BASE | {"exclude": [rule]})
    assert [cell.id for cell in plan(study)] == [whole[0].id, whole[1].id, whole[3].id]
    write_plan(study, whole_plan(study), tmp_path)
    left_out = json.loads((tmp_path / "plan.json").read_text())["excluded"]
    assert left_out == [{"cell": {"seed": 1, "method.name": "flow"}, "reason": rule["reason"]}]
    assert [c.id for c in plan(load_study(str(tmp_path / "study.toml")))] == [c.id for c in plan(study)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(axes=AXES, order=st.permutations(list(FIXED)), data=st.data())
def test_the_order_of_tables_changes_no_id(
    axes: dict[str, Any], order: list[str], data: st.DataObject
) -> None:
    one = ids(BASE | {"axes": axes, "set": FIXED})
    assert one == ids({"set": {path: FIXED[path] for path in order}} | BASE | {"axes": axes})
    permuted = {path: axes[path] for path in data.draw(st.permutations(list(axes)))}
    assert set(one) == set(ids(BASE | {"axes": permuted, "set": FIXED})) and len(set(one)) == len(one)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(axes=AXES, more=st.lists(st.integers(100, 199), min_size=1, max_size=3, unique=True))
def test_growing_an_axis_keeps_the_runs_there_are(axes: dict[str, Any], more: list[int]) -> None:
    axes = {"seed": axes["seed"], **axes}  # the slowest, so that new runs come last
    before = ids(BASE | {"axes": axes})
    after = ids(BASE | {"axes": axes | {"seed": axes["seed"] + more}})
    assert after[: len(before)] == before
    assert len(after) * len(axes["seed"]) == len(before) * (len(axes["seed"]) + len(more))


def test_dotted_paths_may_be_written_as_tables() -> None:
    nested = {"axes": {"seed": [0, 1], "method": {"name": ["flow", "repa"]}}, "set": {"train": {"steps": 7}}}
    assert ids(BASE | nested) == ids(BASE | {"set": {"train.steps": 7}})


def test_an_axis_may_hold_tables() -> None:
    arms = [{"name": "flow"}, {"name": "repa", "coefficient": 0.25}]
    cells = plan(load(BASE | {"axes": {"method": arms}}))
    assert [cell.id for cell in cells] == [
        load_spec("digits", overrides).id
        for overrides in (["method.name=flow"], ["method.name=repa", "method.coefficient=0.25"])
    ]


def test_what_is_measured_names_a_run_where_nothing_else_does() -> None:
    values = {"method": "sra", "seed": 1, "eval.metrics": ["fd:local"]}
    assert label(values) == 'sra seed 1 metrics=["fd:local"]'
    assert label(values | {"data.video_weight": 0.1}) == "sra seed 1 video_weight=0.1"


def test_a_base_file_lies_beside_the_study(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "digits"\n[train]\nsteps = 9\n')
    (tmp_path / "study.toml").write_text(tomli_w.dumps(BASE | {"base": "mine.toml"}))
    assert {cell.spec.train.steps for cell in plan(load_study(str(tmp_path / "study.toml")))} == {9}


@pytest.mark.parametrize("place", ["studies", "."])
def test_a_study_goes_on_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Its base lies beside it, or where the command was given; what is kept of the study finds it from
    elsewhere."""
    for name in ("studies", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / place / "mine.toml").write_text('base = "digits"\n[train]\nsteps = 9\n')
    (tmp_path / "studies" / "study.toml").write_text(tomli_w.dumps(BASE | {"base": "mine.toml"}))
    monkeypatch.chdir(tmp_path)
    study = load_study("studies/study.toml")
    write_plan(study, whole_plan(study), tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = load_study("../runs/study.toml")
    assert [cell.id for cell in plan(again)] == [cell.id for cell in plan(study)]


def test_a_run_is_pinned_to_the_content_of_its_data(tmp_path: Path) -> None:
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
        ({"axes": {"seed": 3}}, "axes.seed = 3: an axis is a list of values"),
        ({"axes": {"seed": []}}, "axes.seed = "),
        ({"axes": [1]}, r"axes must be a table"),
        ({"zip": 3}, r"zip must be a table of axes"),
        ({"axes": {"sed": [1]}}, "unknown key 'sed'.*Did you mean 'seed'"),
        ({"axes": {"train.stepps": [1]}}, "unknown key 'train.stepps'.*Did you mean 'steps'"),
        ({"axes": {"method.name": ["flow", "rep"]}}, "unknown method 'rep' .*Did you mean 'repa'"),
        ({"axes": {"seed": ["a"]}}, 'study s, seed = a: seed = "a"'),
        ({"set": {"seed": 5}}, "'seed' and 'seed' set the same field|'seed' is"),
        ({"set": {"method.name.x": 5}}, "'method.name' and 'method.name.x' set the same field"),
        ({"axes": {"method": [{"name": "flow"}], "method.name": ["flow"]}}, "set the same field"),
        ({"zip": {"a": {"seed": [1, 2]}}}, "'seed' and 'seed' set the same field"),
        (
            {"zip": {"a": {"train.steps": [1, 2], "ema.decay": [0.5]}}},
            "zip.a: every path needs as many values; train.steps has 2, ema.decay has 1",
        ),
        ({"zip": {"a": {"train.steps": 1}}}, "zip.a.train.steps"),
        ({"axes": {"method": [{"name": 3}]}}, "unknown method '3'"),
        (
            {"axes": {"method.name": ["flow"]}, "seeds": {"audit": 0}},
            "seeds.audit = 0: give how many, at least 1",
        ),
        ({"axes": {"method.name": ["flow"]}, "seeds": {"tuning": -3}}, "seeds.tuning = -3: give how many"),
        ({"exclude": [{"where": {"seed": 1}}]}, "exclude.0.reason"),
        ({"exclude": [{"reason": "x", "where": {"sed": 1}}]}, "unknown axis 'sed'.*Did you mean 'seed'"),
        ({"exclude": [{"reason": "x", "where": {"seed": 9}}]}, "the exclusion 'x' leaves nothing out"),
        ({"exclude": [{"reason": "x", "where": {"seed": [0, 1]}}]}, "leaves out every run: x"),
    ],
)
def test_a_mistake_in_a_study_is_one_clear_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        plan(load(BASE | change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["seed", "runtime.threads"])
def test_two_cells_that_are_one_run_are_named(path: str) -> None:
    values = [4, 4] if path == "seed" else [1, 2]
    with pytest.raises(
        UserError, match=rf"one and the same run \([0-9a-f]{{12}}\): \({path} = .*\) and \({path} = "
    ):
        plan(load(BASE | {"axes": {path: values}}))


@pytest.mark.parametrize("override", ["seed=5", "method.name=flow"])
def test_an_axis_cannot_be_overridden(override: str) -> None:
    with pytest.raises(UserError, match="is an axis of this study"):
        load(BASE, (override,))


def test_an_override_inside_an_axis_is_refused() -> None:
    with pytest.raises(UserError, match="set the same field"):
        load(BASE | {"axes": {"method": [{"name": "flow"}]}}, ("method.name=repa",))


@pytest.mark.parametrize("source", ["digit", "nothing.toml"])
def test_a_study_that_is_not_there(source: str) -> None:
    with pytest.raises(UserError, match=r"Did you mean 'digits'|cannot read nothing\.toml: No such file"):
        load_study(source)


def test_a_study_that_is_not_toml(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("name = \n")
    with pytest.raises(UserError, match="is not TOML"):
        load_study(str(tmp_path / "s.toml"))


def test_what_is_written_plans_the_same_again(tmp_path: Path) -> None:
    study = load(BASE | {"set": {"train.steps": 7}, "target": {"metric": "fd:local", "value": 3.0}})
    cells = plan(study)
    write_plan(study, whole_plan(study), tmp_path / "s")
    assert [cell.id for cell in plan(load_study(str(tmp_path / "s" / "study.toml")))] == [c.id for c in cells]
    written = json.loads((tmp_path / "s" / "plan.json").read_text())
    assert written == {"runs": [{"id": cell.id, "cell": cell.values} for cell in cells], "excluded": []}


def test_a_folder_belongs_to_one_study(tmp_path: Path) -> None:
    write_plan(load(BASE), Plan([], []), tmp_path)
    before = (tmp_path / "study.toml").read_bytes()
    with pytest.raises(UserError, match="holds the study 's', not 'other'; choose another --out"):
        write_plan(load(BASE | {"name": "other"}), Plan([], []), tmp_path)
    assert (tmp_path / "study.toml").read_bytes() == before


@pytest.mark.parametrize("name", STUDIES.names())
def test_packaged_studies_say_what_they_are_and_can_be_planned(name: str) -> None:
    study = load_study(name)
    assert study.name == name and STUDIES.summary(name).endswith(".")
    assert plan(study) and tomllib.loads(study.to_toml())["base"] == study.base
    assert study.target.value is not None or study.base != "digits"  # others have their target from the data


def test_digits_races_three_objectives_with_three_seeds() -> None:
    cells = plan(load_study("digits"))
    assert [(cell.spec.seed, cell.spec.method.name) for cell in cells] == [
        (seed, method) for seed in (0, 1, 2) for method in ("flow", "repa", "self_flow")
    ]
