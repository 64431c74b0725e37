"""`flowrace extend`: more steps for a run, or for all runs of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.assembly.resolve import is_run, load_spec, load_table, resolve
from harness.assembly.run_folder import check_named
from harness.cli.run import train_run
from harness.config.options import JSON_OPTION, layout_option, set_option, track_options
from harness.config.parts import nested_setting
from harness.config.spec import RunSpec
from harness.config.tables import merge, parse_override, set_path
from harness.errors import UserError
from harness.records.checkpoint_files import EMA, path_of
from harness.records.record import Record
from harness.records.study_folder import StudyFolder
from sweeps.cli.study_run import Outputs
from sweeps.cli.sweep import run_study
from sweeps.launch.options import LaunchOptions, launch_options
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study

OF_DATA = ("data.", "text.", "eval.")
"""Beginnings of the fields of data and evaluation, which imported weights have too."""
EPILOG = """\b
Example:
  flowrace extend runs/first/0123456789ab --steps 2000
  flowrace extend runs/digits --steps 2000
  flowrace extend runs/released/0123456789ab --steps 410000 --set method.name=repa --set data.root=latents
  flowrace extend REPA.pt --steps 410000 --set method.name=self_flow --set data.root=latents
"""


@click.command(epilog=EPILOG)
@click.argument("path", metavar="RUN|STUDY|WEIGHTS", type=click.Path(path_type=Path))
@click.option(
    "--steps", type=click.IntRange(1), required=True, help="Number of steps from the start of a run."
)
@set_option(help="Set a field, to fine-tune imported weights by another method or on other data.")
@layout_option("Layout of released weights; auto refuses names that fit several layouts.")
@launch_options
@JSON_OPTION
@track_options
@click.option("--no-report", is_flag=True, help="Do not write report.html of a study at the end.")
def extend(
    path: Path,
    steps: int,
    overrides: tuple[str, ...],
    layout: str,
    launch: LaunchOptions,
    as_json: bool,
    track: str | None,
    no_track: bool,
    no_report: bool,
) -> None:
    """Continue a run, or all runs of a study, from their last checkpoints to more steps.

    The result has the bits of a run that was started with that number of steps, and a run that ended early
    goes to its last step. Rerun to resume. A run of
    imported weights can be continued with other settings (--set), as a separate run next to it. A .pt or
    .safetensors file of released weights is imported into the folder runs first.
    """
    if path.is_file():
        path = _imported(path, layout, overrides)
    if is_run(path):
        return train_run(
            _longer(path, steps, overrides), path.resolve().parent, track, no_track, quiet=as_json
        )
    if overrides:
        raise UserError("--set changes the settings of imported weights; for a study, edit its TOML file")
    folder = StudyFolder(path)
    if not folder.study_file.is_file():
        raise UserError(
            f"{path} is neither a run nor a study; give the --out folder of a sweep, or a run in it"
        )
    # Runs that ended early continue to their last step.
    study = load_study(str(folder.study_file), (f"train.steps={steps}",)).to_the_end
    if isinstance(study.budget.flops_per_run, float):
        raise UserError(
            f"--steps {steps}: budget.flops_per_run = {study.budget.flops_per_run:g} sets the steps of this "
            f"study's runs; raise it in the study's file and run flowrace sweep FILE --out {path}"
        )
    for run in make_plan(study, path).runs:
        _check_longer(path / run.id, run.spec, run.spec.train.steps)
    run_study(study, path, launch, Outputs(track, no_track, no_report, as_json))


def _imported(file: Path, layout: str, overrides: tuple[str, ...]) -> Path:
    """Return the run directory of a file of weights, whose data are those of the overrides."""
    from harness.exchange.weights_run import is_weights, run_of_weights

    if not is_weights(file):
        raise UserError(f"{file} is a file, expected a run, a study, or weights (.pt, .safetensors)")
    fields = tuple(override for override in overrides if override.startswith(OF_DATA))
    return run_of_weights(file, layout, Path("runs"), fields)


def _longer(path: Path, steps: int, overrides: tuple[str, ...]) -> RunSpec:
    """Return the spec of a longer run; only imported weights take other settings."""
    spec = _changed(path, (*overrides, f"train.steps={steps}"))
    if not spec.start.weights:
        _check_longer(path, spec, steps)
        if spec.id != load_spec(str(path)).id:
            raise UserError(
                f"--set {' '.join(overrides)}: {path} was trained with other settings, which cannot "
                "change on the way; train a new run with flowrace run"
            )
        check_named(path, spec)
        return spec
    if not overrides:
        _check_longer(path, spec, steps)
        check_named(path, spec)
    own = path_of(path / EMA, spec.start.step)
    file = str(own.resolve()) if own.exists() else spec.start.file
    return spec.model_copy(update={"start": spec.start.model_copy(update={"file": file})})


def _changed(path: Path, overrides: tuple[str, ...]) -> RunSpec:
    """Return the spec of a run with overrides; another method starts from its own defaults."""
    changes: dict[str, Any] = {}
    for override in overrides:
        set_path(changes, *nested_setting(*parse_override(override)))
    table = load_table(str(path))
    named = changes.get("method", {}).get("name")
    if named is not None and named != table.get("method", {}).get("name"):
        table.pop("method", None)
    return resolve(merge(table, changes), where=str(path))


def _check_longer(path: Path, spec: RunSpec, steps: int) -> None:
    """Raise `UserError` if a run cannot be extended, or would not become longer."""
    if spec.horizon:
        raise UserError(
            f"{path} cannot be extended: {spec.horizon} makes every step depend on the number of steps; "
            "train a new run with flowrace run"
        )
    record = Record(path)
    now = record.steps if record.status != "missing" else None
    if now is not None and now > steps:
        raise UserError(f"--steps {steps}: {path} already goes to step {now}; give a larger number")
