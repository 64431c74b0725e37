"""Which runs belong together."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from harness.assembly.resolve import load_spec
from harness.config.spec import canonical
from harness.errors import UserError
from harness.records.record import find_records
from reports.race.arms import RaceArm, arm_fields, arms_of, differences, find_arm, flatten, labels_of
from tests.reports.synthetic import write_run

GRID = (10, 20)


def arms(folder: Path) -> list[RaceArm]:
    return arms_of(find_records(folder))


def test_seeds_and_what_cannot_change_results_make_no_arm(tmp_path: Path) -> None:
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


def test_where_weights_lie_makes_no_arm(tmp_path: Path) -> None:
    """Of the encoder and of every further one, as the run id has it; another encoder does make one."""
    specs = []
    for root, download, name in (
        ("/here", "false", "random:small"),
        ("/there", "true", "random:small"),
        ("/here", "false", "random:tiny"),
    ):
        further = f'{{name = "{name}", weights = "{root}/b", download = {download}}}'
        own = ("name=local:small", f"weights={root}/a", f"download={download}")
        settings = [f"method.encoder.{setting}" for setting in own]
        specs.append(load_spec("digits", ["method.name=repa", *settings, f"method.further=[{further}]"]))
    fields = [arm_fields(tomllib.loads(spec.to_toml())) for spec in specs]
    assert fields[0] == fields[1] != fields[2]
    assert specs[0].id == specs[1].id != specs[2].id
    assert "/here" not in json.dumps(fields[0])


def test_two_settings_of_a_method_are_two_arms_named_by_what_differs(tmp_path: Path) -> None:
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


def test_what_differs_outside_the_method_is_said_of_every_arm(tmp_path: Path) -> None:
    """A confounder is not hidden because it is constant within a method."""
    write_run(tmp_path / "a", "flow", grid=GRID, set_={"backbone.size": "S"})
    write_run(tmp_path / "b", "repa", grid=GRID, set_={"backbone.size": "B"})
    found = arms(tmp_path)
    assert [arm.label for arm in found] == ["flow (backbone.size = S)", "repa (backbone.size = B)"]
    assert differences(found) == [("backbone.size", ["S", "B"]), ("method.name", ["flow", "repa"])]


def test_an_empty_field_is_no_difference_worth_showing(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "flow", grid=GRID)
    write_run(
        tmp_path / "b",
        "repa",
        grid=GRID,
        set_={"method.encoder.name": "local:small", "method.encoder.sha256": ""},
    )
    assert [path for path, _ in differences(arms(tmp_path))] == ["method.encoder.name", "method.name"]


def test_two_runs_of_one_arm_and_seed_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, "flow", 3, grid=GRID)
    with pytest.raises(UserError, match=r"two runs of flow with seed 3: .*a and .*b"):
        arms(tmp_path)


def test_the_fields_of_an_arm_are_those_that_the_run_id_hashes() -> None:
    """Changing any one field changes the run id exactly when it changes the arm (the seed apart)."""
    spec = load_spec("digits", ["method.name=self_flow"])
    table = spec.model_dump(mode="json")
    other = {int: lambda v: v + 1, float: lambda v: v / 2 + 0.125, bool: lambda v: not v}
    changed = 0
    for path, value in flatten(table).items():
        if type(value) not in other or path == "seed":
            continue
        try:
            new = load_spec(
                "digits", ["method.name=self_flow", f"{path}={str(other[type(value)](value)).lower()}"]
            )
        except UserError:  # not allowed for this field, as a decay above 1
            continue
        differs = arm_fields(new.model_dump(mode="json")) != arm_fields(table)
        assert differs == (new.id != spec.id), path
        changed += 1
    assert changed > 15


@pytest.mark.parametrize("preset", ["digits", "bounce", "moving-digits", "imagenet256"])
def test_records_of_older_versions_belong_to_the_same_arm(preset: str) -> None:
    """What the run id hashes is all that an arm is, whether fields that came later are written out or not."""
    spec = load_spec(preset, ["method.name=flow"])
    written, hashed = tomllib.loads(spec.to_toml()), json.loads(canonical(spec))
    assert arm_fields(written) == {path: v for path, v in arm_fields(hashed).items() if v is not None}
    assert len(flatten(written)) > len(flatten(hashed))


def test_an_arm_is_found_by_label_or_by_a_method_that_is_single(tmp_path: Path) -> None:
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


def test_what_is_measured_names_an_arm_only_where_nothing_else_does() -> None:
    flow = {"method.name": "flow"}
    fields = {
        "joint": flow | {"data.audio_weight": 0.5, "eval.metrics": ["fd:local", "sync"]},
        "alone": flow | {"data.audio_weight": 1.0, "eval.metrics": ["fd:local"]},
    }
    assert list(labels_of(fields).values()) == [
        "flow (data.audio_weight = 0.5)",
        "flow (data.audio_weight = 1)",
    ]
    for own in fields.values():
        del own["data.audio_weight"]
    assert all("eval.metrics" in label for label in labels_of(fields).values())
