"""`flowrace probe`: measurements of a network's layers, or of a study's encoders, as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Column, Table

from harness.config.options import JSON_OPTION, STEP_OPTION, set_option
from harness.errors import UserError
from harness.files.terminal import show
from harness.train.trained_run import model_of_run, spec_of_run

if TYPE_CHECKING:
    from harness.encoders.base import Choice, Encoder
    from harness.probing.encoder_table import ProbeSettings
    from harness.probing.layers import Row
    from metrics import Value


OPTIONS = {
    "set method.encoder.download=true": "give --download",
    "method.encoder.weights = ": "--weights ",
    "method.encoder.weights": "--weights",
}
"""Field of a spec in an encoder's error text -> option of this command."""
TIME = 0.25
"""Noise level of the inputs by default."""
MEASURES = ("accuracy", "CKNNA", "CKA", "local - distant", "decay")


EPILOG = """\b
Example:
  flowrace probe runs/first/0123456789ab --encoder local:small
  flowrace probe runs/encoder-scaling
  flowrace probe runs/video-digits --control
  flowrace probe runs/prompts/0123456789ab --prompts --samples 200
"""


@click.command(epilog=EPILOG)
@click.argument("path", metavar="RUN|STUDY", type=click.Path(path_type=Path))
@STEP_OPTION
@click.option("--encoder", "name", metavar="NAME", help="Encoder to compare with. Default: the run's.")
@click.option(
    "--weights",
    default="",
    metavar="FILE",
    help="File of the encoder's weights (safetensors), if it needs one.",
)
@click.option("--download", is_flag=True, help="Download the encoder's weights from the hub if missing.")
@click.option(
    "--probe",
    "classifier",
    type=click.Choice(["ridge", "repa"]),
    default="ridge",
    show_default=True,
    help="Linear classifier: ridge regression in closed form, or REPA's protocol (90 epochs of Adam).",
)
@click.option(
    "--time",
    type=click.FloatRange(0, 1),
    help=f"Noise level of the inputs: 0 is clean, 1 is noise. Default: {TIME:g}.",
)
@click.option(
    "--samples",
    type=click.IntRange(20),
    default=2000,
    show_default=True,
    help="Maximum number of training images, and of held-out images (with --control: held-out videos; with "
    "--prompts: pairs of prompts, at most eval.samples).",
)
@click.option("--control", is_flag=True, help="Regress state and action on the layers of video runs instead.")
@click.option(
    "--all-steps", is_flag=True, help="With --control: measure every checkpoint, not only the newest."
)
@click.option(
    "--prompts", is_flag=True, help="Measure samples of a run on captions under exchanged prompts instead."
)
@set_option(help="Set a field of eval or runtime, for example runtime.device=cpu; may be repeated.")
@JSON_OPTION
def probe(
    path: Path,
    step: int | None,
    name: str | None,
    weights: str,
    download: bool,
    classifier: str,
    time: float | None,
    samples: int,
    control: bool,
    all_steps: bool,
    prompts: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure every layer of a checkpoint (EMA weights) and compare it with a frozen encoder.

    RUN: accuracy is that of a linear classifier on held-out images. CKNNA and CKA measure agreement with the
    encoder. "local - distant" and "decay" measure spatial self-similarity of tokens. Brackets are 95 %
    intervals over images. The run is not changed.

    STUDY, a folder of runs: measure every encoder of its runs, and compare it with the network of a run that
    was trained without one. The table is stored as encoders.json in that folder, and `flowrace report` shows
    it. Rerun to add only the missing encoders.

    --control: R2 of a ridge regression from each layer to state (position) and action (displacement), for
    data sets that record positions. The baselines are the noisy pixels and the untrained network. For a study
    the table is stored as control.json.

    --prompts: draw samples with the noise of one held-out caption and the prompt of another one. The table
    has the share of samples that obey the prompt shown and the other prompt, with Wilson's intervals, and the
    share of real samples that obey the other prompt. Below it is the difference under another prompt and
    under other noise. The data must know what captions state (prompts, bounce).
    """
    from harness.assembly.condition import null_text
    from harness.data.open import open_dataset, split
    from harness.encoders.base import data_of
    from harness.probing.encoder_table import ProbeSettings, is_study
    from harness.probing.layers import probe as measure
    from harness.runtime.environment import prepare

    if all_steps and not control:
        raise UserError("--all-steps requires --control; use --step to choose a checkpoint")
    if prompts:
        _check_no_encoder_options(name, weights, download, classifier, "--prompts", control)
        if time is not None:
            raise UserError(
                f"--time {time:g} applies to layers, but --prompts measures samples; remove one of the two"
            )
        _probe_prompts(path, step, samples, overrides, as_json)
        return
    time = TIME if time is None else time
    if control:
        _check_no_encoder_options(name, weights, download, classifier, "--control")
        _probe_control(path, step, all_steps, time, samples, overrides, as_json)
        return
    if is_study(path):
        _check_no_run_options(path, step, weights)
        _probe_study(path, name, download, ProbeSettings(classifier, time, samples), overrides, as_json)
        return
    spec = spec_of_run(path, overrides)
    choice = chosen(next(iter(spec.method.needs().encoders), None), name, weights, download)
    prepare(spec.runtime.threads)
    file, model, device = model_of_run(path, spec, step)
    dataset, encoder = open_dataset(spec.data), None
    if choice is not None:
        read = data_of(choice, dataset)
        encoder = _opened(choice, read, grid=model.config.grid, held_out=spec.data.held_out, device=device)
    sides = split(dataset, spec.data.held_out)
    how = {"time": time, "samples": samples, "classifier": classifier}
    null = null_text(spec, dataset, device)
    found = measure(model, dataset, sides, encoder, device=device, null=null, **how)
    if as_json:
        rows = [_plain(row) for row in found.rows]
        about = {"run": path.name, "checkpoint": file.name, "time": time, "probe": classifier}
        counts = {"train": found.train, "held_out": found.held_out}
        click.echo(json.dumps({**about, "encoder": choice and choice.name, **counts, "rows": rows}))
        return
    show(_table(found.rows, " "), narrow=_table(found.rows, "\n"))
    click.echo(
        f"{file.stem}, time {time:g}, {classifier} probe, {found.train} training images, "
        f"{found.held_out} held out"
    )


def chosen(own: Any, name: str | None, weights: str, download: bool) -> Choice | None:
    """Return the encoder that the options name, else the run's, else None.

    Raises `UserError` for options of an encoder that does not exist.
    """
    from harness.encoders.base import Choice

    if name and (own is None or name != own.name):
        return Choice(name, weights, download=download)
    if own is not None:
        return Choice(own.name, weights or own.weights, own.sha256, download or own.download)
    if weights or download:
        option = f"--weights {weights}" if weights else "--download"
        raise UserError(
            f"{option} requires --encoder family:model, because this run was trained without an encoder"
        )
    return None


def _check_no_run_options(path: Path, step: int | None, weights: str) -> None:
    for option, value in (("--step", step), ("--weights", weights)):
        if value:
            raise UserError(
                f"{option} {value} applies to one run, but {path} is a study; name one of its runs"
            )


def _check_no_encoder_options(
    name: str | None, weights: str, download: bool, classifier: str, asked: str, control: bool = False
) -> None:
    """Raise `UserError` for options of an encoder, or of another measurement, next to `asked`."""
    given = {
        "--encoder": name,
        "--weights": weights,
        "--download": download,
        "--probe": classifier != "ridge",
    }
    for option in (option for option, value in given.items() if value):
        raise UserError(
            f"{option} applies to encoders, but {asked} measures without one; remove one of the two"
        )
    if control:
        raise UserError(f"--control and {asked} are mutually exclusive; give one of them")


def _probe_prompts(
    path: Path, step: int | None, samples: int, overrides: tuple[str, ...], as_json: bool
) -> None:
    from harness.cli.probe_prompts import of_run
    from harness.probing.encoder_table import is_study

    if is_study(path):
        raise UserError(f"--prompts applies to one run, but {path} is a study; name one of its runs")
    of_run(path, step, samples, overrides, as_json)


def _probe_control(
    path: Path,
    step: int | None,
    every: bool,
    time: float,
    samples: int,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    from harness.cli.probe_control import of_run, of_study
    from harness.probing.control_table import ControlSettings
    from harness.probing.encoder_table import is_study

    if is_study(path):
        _check_no_run_options(path, step, "")
        of_study(path, every, ControlSettings(time, samples), overrides, as_json)
        return
    if every and step is not None:
        raise UserError(f"--step {step} and --all-steps are mutually exclusive")
    of_run(path, step, every, ControlSettings(time, samples), overrides, as_json)


def _probe_study(
    path: Path,
    name: str | None,
    download: bool,
    settings: ProbeSettings,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure all encoders of a study, or the named one."""
    from harness.encoders.base import Choice
    from harness.probing.encoder_table import FILE, measure_encoders, study_of

    study = study_of(path, overrides)
    encoders = study.encoders if name is None else {name: study.encoders.get(name, Choice(name))}
    if download:
        encoders = {key: replace(choice, download=True) for key, choice in encoders.items()}
    if not encoders:
        raise UserError(f"no run of {path} has an encoder; name one with --encoder family:model")
    table = measure_encoders(path, study._replace(encoders=encoders), settings)
    if as_json:
        click.echo(json.dumps(table))
        return
    show(_encoders(table["encoders"]))
    control = table["protocol"]["control"]
    compared = f"CKNNA and CKA with the best layer of {control}, which was trained without an encoder"
    click.echo(compared if control else "no CKNNA and no CKA, because no finished run is without an encoder")
    click.echo(path / FILE)


def _encoders(encoders: dict[str, Any]) -> Table:
    from metrics import Value

    table = Table("", "parameters", *MEASURES, "layer", box=None, padding=(0, 1))
    for name, entry in encoders.items():
        keys = ("accuracy", "cknna", "cka", "local_distant", "spatial_decay")
        values = [None if entry[key] is None else Value(**entry[key]) for key in keys]
        cells = [_cell(value, " ") for value in values]
        table.add_row(escape(name), f"{entry['params']:,}", *cells, entry["layer"] or "-")
    return table


def _opened(choice: Choice, dataset: Any, **where: Any) -> Encoder:
    """Open an encoder; errors name the options of this command instead of spec fields."""
    from harness.encoders.base import open_encoder

    try:
        return open_encoder(choice, dataset, **where)
    except UserError as error:
        message = str(error)
        for field, option in OPTIONS.items():
            message = message.replace(field, option)
        raise UserError(message) from error


def _table(rows: list[Row], between: str) -> Table:
    """Return the table of layers; `between` separates a number from its interval."""
    table = Table(Column("", overflow="fold"), *MEASURES, box=None, padding=(0, 1))
    for row in rows:
        table.add_row(escape(row.name), *(_cell(value, between) for value in row[1:]))
    return table


def _cell(value: Value | None, between: str) -> str:
    if value is None:
        return "-"
    interval = (
        "" if value.low is None or value.high is None else f"{between}[{value.low:.3f}, {value.high:.3f}]"
    )
    return f"{value.mean:.3f}{escape(interval)}"


def _plain(row: Row) -> dict[str, object]:
    from metrics import Value

    return {key: asdict(v) if isinstance(v, Value) else v for key, v in row._asdict().items()}
