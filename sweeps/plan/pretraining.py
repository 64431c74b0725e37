"""The first stage of a study: the runs of another study, whose weights the runs of this one start from.

A run with `start.arm = "self_flow"` starts from the EMA weights of the first stage's run of that arm and of
the same seed, at its last step. The plan writes the id of that run into the spec, so ids are known before
anything is trained, and a change of the first stage changes them. Layers that the first stage does not have,
for example those of actions, begin with initial weights, which are those of every arm with the same seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Any: a setting of any type.
from typing import Any

import tomli_w

from harness.config.spec import RunSpec
from harness.errors import UserError, unknown
from sweeps.plan.study import Pretraining, Study, load_study

SHARED = ("data.root", "data.workers", "data.held_out", "data.image_key", "data.resolution", "runtime.")
"""Settings of a study that its first stage shares: the data, their split, and the execution."""


def first_stage(study: Study) -> Study | None:
    """Return the study of the first stage; None without one.

    It has this study's data, split and execution, unless it sets its own. Its runs go to their last step,
    where those of this study start. Raises `UserError` as `stages`.
    """
    return next(iter(stages(study)), None)


def stages(study: Study) -> list[Study]:
    """Return the stages before a study: its first stage, that of the first stage, and so on.

    Raises `UserError` for a study that would be pretrained by its own runs.
    """
    found: list[Study] = []
    named: list[str] = []
    while (given := study.pretraining) is not None:
        if given.study in named:
            raise UserError(
                f"study {study.name}: [pretraining] study = {given.study} is already being planned, so no "
                "stage would be the first; name a study that does not start from this one"
            )
        named.append(given.study)
        study = _stage(study, given)
        found.append(study)
    return found


def _stage(study: Study, given: Pretraining) -> Study:
    shared = {path: value for path, value in study.set.items() if path.startswith(SHARED)}
    overrides = [f"{path}={_as_toml(value)}" for path, value in (shared | given.set).items()]
    return load_study(given.study, overrides).to_the_end


def first_folder(study: Study, first: Study, directory: Path) -> Path:
    """Return the folder of the first stage of a study in a folder, which is next to it.

    Raises `UserError` if two stages have one folder.
    """
    taken = {directory.resolve(): study.name}
    for stage in stages(study):
        folder = directory.parent / stage.name
        if (name := taken.get(folder.resolve())) is not None:
            raise UserError(
                f"study {name} and its [pretraining] {stage.name} have one folder, {folder}; give another "
                "--out, or give each stage its own name"
            )
        taken[folder.resolve()] = stage.name
    return directory.parent / first.name


@dataclass(frozen=True)
class Pretrained:
    """A planned run of the first stage."""

    arm: str
    """Name of its arm, without its seed."""
    id: str
    spec: RunSpec


def check_unpretrained(study: Study, specs: Iterable[RunSpec]) -> None:
    """Raise `UserError` for a run that starts from an arm of a first stage, which the study does not have."""
    for spec in specs:
        if spec.start.arm:
            raise UserError(
                f"study {study.name}: start.arm = {spec.start.arm} names an arm of a first stage, which this "
                'study lacks; add [pretraining] study = "NAME"'
            )


def with_start(spec: RunSpec, study: Study, first: Sequence[Pretrained], folder: Path | None) -> RunSpec:
    """Return the spec of a run with the run of the first stage, in its folder, that it starts from.

    Raises `UserError` for an unknown arm, one without a run of this seed, and for another network.
    """
    start = spec.start
    if not start.arm:
        return spec
    found = _pretrained(spec, study, first)
    if found.spec.backbone != spec.backbone or found.spec.flow.prediction != spec.flow.prediction:
        raise UserError(
            f"study {study.name}: start.arm = {start.arm} has another network than the runs that start from "
            "it; give both stages the same backbone and flow.prediction"
        )
    _check_split(spec, found.spec, study)
    # Any: a text or a number.
    fields: dict[str, Any] = {"run": found.id, "run_step": found.spec.train.steps}
    if folder is not None:
        fields["file"] = str((folder / found.id).resolve())
    return spec.model_copy(update={"start": start.model_copy(update=fields)})


def _check_split(spec: RunSpec, first: RunSpec, study: Study) -> None:
    """Raise `UserError` if the first stage trains on samples that the run holds out.

    Sides of the split depend on content, so stages on different data are not compared.
    """
    same = (spec.data.name, spec.data.root) == (first.data.name, first.data.root)
    if same and spec.data.held_out != first.data.held_out:
        raise UserError(
            f"study {study.name}: data.held_out = {spec.data.held_out:g}, but its [pretraining] has "
            f"{first.data.held_out:g} on the same data, so it may train on samples that these runs hold out; "
            "give both stages the same data.held_out"
        )


def _pretrained(spec: RunSpec, study: Study, first: Sequence[Pretrained]) -> Pretrained:
    """Return the only run of the first stage that `start.arm` and the seed of a run name."""
    arm, seed = spec.start.arm, spec.seed
    named = [one for one in first if arm in (one.spec.method.name, one.arm)]
    if not named:
        raise unknown("start.arm", arm, {one.arm for one in first})
    found = [one for one in named if one.spec.seed == seed]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(
            f"study {study.name}: start.arm = {arm} has no run of seed {seed} in [pretraining]; give both "
            "stages the same seeds"
        )
    arms = ", ".join(f"'{one.arm}'" for one in found)
    raise UserError(f"study {study.name}: start.arm = {arm} names several arms ({arms}); give one of them")


def _as_toml(value: Any) -> str:
    """Return a value as overrides have it."""
    return tomli_w.dumps({"value": value}).partition(" = ")[2].strip()
