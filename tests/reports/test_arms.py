"""The grouping of runs into arms, and the labels of arms."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from harness.assembly.resolve import load_spec
from harness.config.spec import canonical
from harness.errors import UserError
from harness.records.record import find_records
from harness.records.targets import OF_SEED
from reports.race.arms import (
    RaceArm,
    arm_fields,
    arms_of,
    differences,
    find_arm,
    flatten,
    labels_of,
    trajectory_fields,
)
from reports.race.cells import baseline_first
from sweeps.plan.difference import _fields as study_fields
from tests.reports.synthetic import write_run

GRID = (10, 20)


def arms(folder: Path) -> list[RaceArm]:
    return arms_of(find_records(folder))


def test_arm_ignores_seed_and_fields_that_cannot_change_results(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "flow", 0, grid=GRID)
    write_run(tmp_path / "b", "flow", 1, grid=GRID, set_={"data.root": "elsewhere", "runtime.threads": 2})
    write_run(
        tmp_path / "c",
        "repa",
        0,
        grid=GRID,
        set_={"method.encoder.name": "local:small", "method.encoder.weights": "x"},
    )
    write_run(
        tmp_path / "d",
        "repa",
        1,
        grid=GRID,
        set_={"method.encoder.name": "local:small", "train.log_every": 7},
    )
    found = arms(tmp_path)
    assert [(arm.label, list(arm.runs)) for arm in found] == [("flow", [0, 1]), ("repa", [0, 1])]
    assert found[1].encoder == "local:small" and found[0].encoder is None


def test_planned_run_belongs_to_the_arm_whose_left_out_fields_have_its_values(tmp_path: Path) -> None:
    write_run(tmp_path / "a", grid=GRID)
    write_run(tmp_path / "b", grid=GRID, set_={"start.arm": "repa", "start.frozen": True})
    scratch, frozen = arms(tmp_path)
    planned = {"seed": 3, "method.name": "flow", "start.arm": "", "start.frozen": False, "eval.samples": 9}
    assert (scratch.holds(planned), frozen.holds(planned)) == (True, False)
    planned |= {"start.arm": "repa", "start.frozen": True}
    assert (scratch.holds(planned), frozen.holds(planned)) == (False, True)
    assert not scratch.holds(planned | {"start.arm": ""}) and not frozen.holds({"start.frozen": False})


def test_baseline_of_arms_that_share_a_method_starts_from_initial_weights(tmp_path: Path) -> None:
    for arm in ("flow", "", "repa"):
        for frozen in (False, True):
            set_ = {"start.arm": arm, "start.frozen": frozen, "train.learning_rate": 1e-3}
            if arm or not frozen:
                write_run(tmp_path / f"{arm}{frozen}", grid=GRID, set_=set_)
    found = arms(tmp_path)
    order = {arm.runs[0].id: place for place, arm in enumerate(reversed(found))}
    for requested, declared in (("flow", None), (None, "flow")):
        ordered, notes = baseline_first(found, requested, declared, order)
        assert not ordered[0].fields.get("start.arm") and not notes


def test_arm_ignores_location_of_encoder_weights(tmp_path: Path) -> None:
    """This holds for the encoder and every further one, as in the run id; another encoder is another arm."""
    specs = []
    for root, download, name in (
        ("/here", "false", "random:small"),
        ("/there", "true", "random:small"),
        ("/here", "false", "random:tiny"),
    ):
        further = f'{{name = "{name}", weights = "{root}/b", download = {download}}}'
        encoder = ("name=local:small", f"weights={root}/a", f"download={download}")
        settings = [f"method.encoder.{setting}" for setting in encoder]
        specs.append(load_spec("digits", ["method.name=repa", *settings, f"method.further=[{further}]"]))
    fields = [arm_fields(tomllib.loads(spec.to_toml())) for spec in specs]
    assert fields[0] == fields[1] != fields[2]
    assert specs[0].id == specs[1].id != specs[2].id
    assert "/here" not in json.dumps(fields[0])


def test_encoder_of_a_stack_is_that_of_its_term(tmp_path: Path) -> None:
    specs = [
        load_spec(
            "digits",
            [
                "method.name=repa+tread",
                f"method.repa.encoder={{name = '{name}', weights = '{root}/a', download = {download}}}",
                f"method.repa.further=[{{name = 'local:tiny', weights = '{root}/b'}}]",
            ],
        )
        for root, download, name in (
            ("/here", "false", "local:small"),
            ("/there", "true", "local:small"),
            ("/here", "false", "local:tiny"),
        )
    ]
    tables = [tomllib.loads(spec.to_toml()) for spec in specs]
    fields = [arm_fields(table) for table in tables]
    assert fields[0] == fields[1] != fields[2]
    assert RaceArm("", fields[2], {}).encoder == "local:tiny"
    compared = [study_fields(table) for table in tables]
    assert compared[0] == compared[1] != compared[2]


def test_settings_of_a_method_are_arms_labelled_by_differing_fields(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "flow", grid=GRID)
    for i, coefficient in enumerate((10.0, 0.5, 2.0)):
        write_run(
            tmp_path / f"r{i}", "repa", grid=GRID, set_={"method.coefficient": coefficient, "method.layer": 4}
        )
    labels = [arm.label for arm in arms(tmp_path)]
    assert labels == [
        "flow",
        "repa (coefficient = 0.5)",
        "repa (coefficient = 2)",
        "repa (coefficient = 10)",
    ]


def test_labels_show_differences_outside_the_method(tmp_path: Path) -> None:
    """A confounder is shown even if it is constant within each method."""
    write_run(tmp_path / "a", "flow", grid=GRID, set_={"backbone.size": "S"})
    write_run(tmp_path / "b", "repa", grid=GRID, set_={"backbone.size": "B"})
    found = arms(tmp_path)
    assert [arm.label for arm in found] == ["flow (backbone.size = S)", "repa (backbone.size = B)"]
    assert differences(found) == [("backbone.size", ["S", "B"]), ("method.name", ["flow", "repa"])]


def test_differences_leave_out_empty_fields(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "flow", grid=GRID)
    write_run(
        tmp_path / "b",
        "repa",
        grid=GRID,
        set_={"method.encoder.name": "local:small", "method.encoder.sha256": ""},
    )
    assert [path for path, _ in differences(arms(tmp_path))] == ["method.encoder.name", "method.name"]


def test_two_runs_with_equal_arm_and_seed_are_rejected(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, "flow", 3, grid=GRID)
    with pytest.raises(UserError, match=r"two runs of flow with seed 3: .*a and .*b"):
        arms(tmp_path)


def test_fields_of_an_arm_are_those_that_the_run_id_hashes() -> None:
    """Changing a field other than those of the seed changes the run id exactly if it changes the arm."""
    spec = load_spec("digits", ["method.name=self_flow"])
    table = spec.model_dump(mode="json")
    other = {int: lambda v: v + 1, float: lambda v: v / 2 + 0.125, bool: lambda v: not v}
    changed = 0
    for path, value in flatten(table).items():
        if type(value) not in other or path in ("seed", *OF_SEED):
            continue
        try:
            new = load_spec(
                "digits", ["method.name=self_flow", f"{path}={str(other[type(value)](value)).lower()}"]
            )
        except UserError:
            # The new value is not allowed for this field, for example a decay above 1.
            continue
        differs = trajectory_fields(new.model_dump(mode="json")) != trajectory_fields(table)
        assert differs == (new.id != spec.id), path
        changed += 1
    assert changed > 15


@pytest.mark.parametrize("preset", ["digits", "bounce", "moving-digits", "imagenet256"])
def test_records_of_older_versions_belong_to_the_same_arm(preset: str) -> None:
    """An arm consists of what the run id hashes, whether or not fields added later are written out."""
    spec = load_spec(preset, ["method.name=flow"])
    written, hashed = tomllib.loads(spec.to_toml()), json.loads(canonical(spec))
    assert arm_fields(written) == {path: v for path, v in arm_fields(hashed).items() if v is not None}
    assert len(flatten(written)) > len(flatten(hashed))


def test_find_arm_accepts_a_label_or_the_method_of_a_single_arm(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "flow", grid=GRID)
    for name, coefficient in (("b", 0.5), ("c", 1.0)):
        write_run(tmp_path / name, "repa", grid=GRID, set_={"method.coefficient": coefficient})
    found = arms(tmp_path)
    assert find_arm(found, "flow") is found[0]
    assert find_arm(found, "repa (coefficient = 1)") is found[2]
    with pytest.raises(UserError, match=r"'repa' matches more than one arm \('repa \(coefficient = 0.5\)'"):
        find_arm(found, "repa")
    with pytest.raises(UserError, match=r"unknown baseline 'flwo'.*Did you mean 'flow'\?"):
        find_arm(found, "flwo")


def test_labels_use_eval_metrics_only_when_nothing_else_differs() -> None:
    flow = {"method.name": "flow"}
    fields = {
        "joint": flow | {"data.audio_weight": 0.5, "eval.metrics": ["fd:local", "sync"]},
        "alone": flow | {"data.audio_weight": 1.0, "eval.metrics": ["fd:local"]},
    }
    assert list(labels_of(fields).values()) == [
        "flow (data.audio_weight = 0.5)",
        "flow (data.audio_weight = 1)",
    ]
    for spec in fields.values():
        del spec["data.audio_weight"]
    assert all("eval.metrics" in label for label in labels_of(fields).values())


def test_prediction_weighting_and_optimizer_are_of_an_arm_if_they_are_set(tmp_path: Path) -> None:
    """A record of an earlier version, which lacks these fields, is in the arm of their defaults."""
    write_run(tmp_path / "old", "flow", 0, grid=GRID)
    defaults = {"flow.prediction": "velocity", "flow.weighting": "none", "optimizer.name": "adamw"}
    write_run(tmp_path / "new", "flow", 1, grid=GRID, set_=defaults)
    chosen = {"x": "flow.prediction", "min_snr": "flow.weighting", "muon": "optimizer.name"}
    for value, field in chosen.items():
        write_run(tmp_path / value, "flow", 0, grid=GRID, set_={**defaults, field: value})
    found = arms(tmp_path)
    assert sorted(len(arm.runs) for arm in found) == [1, 1, 1, 2]
    alone = {next(iter(arm.runs.values())).path.name: arm for arm in found if len(arm.runs) == 1}
    assert {name: arm.fields[chosen[name]] for name, arm in alone.items()} == {name: name for name in chosen}
    paths = {path for path, _ in differences(found)}
    assert paths == set(chosen.values())
