"""`flowrace probe`: what the layers of a run's network know, or a study's encoders, as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Column, Table

from harness.cli.options import AS_JSON, SETTING, STEP
from harness.errors import UserError
from harness.files.terminal import show
from harness.train.trained_run import model_of_run, spec_of_run

if TYPE_CHECKING:
    from harness.encoders.base import Choice, Encoder
    from harness.probing.encoder_table import Asked
    from harness.probing.layers import Row
    from metrics import Value


OPTIONS = {
    "set method.encoder.download=true": "give --download",
    "method.encoder.weights = ": "--weights ",
    "method.encoder.weights": "--weights",
}
"""What the advice of encoders says, and what it is called here."""
MEASURES = ("accuracy", "CKNNA", "CKA", "local - distant", "decay")


@click.command(
    epilog="Example: flowrace probe runs/first/0123456789ab --encoder local:small --json. "
    "Of a study: flowrace probe runs/encoder-scaling, flowrace probe runs/video-digits --control"
)
@click.argument("path", metavar="RUN|STUDY", type=click.Path(path_type=Path))
@STEP
@click.option("--encoder", "name", metavar="NAME", help="Compare with this one; by default the run's own.")
@click.option(
    "--weights",
    default="",
    metavar="FILE",
    help="The encoder's weights, where it needs a file (safetensors).",
)
@click.option("--download", is_flag=True, help="Let the hub be asked for the encoder's weights.")
@click.option(
    "--probe",
    "classifier",
    type=click.Choice(["ridge", "repa"]),
    default="ridge",
    show_default=True,
    help="The linear classifier: ridge regression in closed form, or REPA's protocol (90 epochs of Adam).",
)
@click.option(
    "--time", type=click.FloatRange(0, 1), default=0.25, show_default=True, help="0 is clean, 1 is noise."
)
@click.option(
    "--samples",
    type=click.IntRange(20),
    default=2000,
    show_default=True,
    help="At most so many images to learn from, and so many held-out ones to measure on; with --control, held-out videos.",
)
@click.option("--control", is_flag=True, help="Read state and action from the layers of video runs instead.")
@click.option("--all-steps", is_flag=True, help="With --control: every checkpoint, not the newest alone.")
@SETTING
@AS_JSON
def probe(
    path: Path,
    step: int | None,
    name: str | None,
    weights: str,
    download: bool,
    classifier: str,
    time: float,
    samples: int,
    control: bool,
    all_steps: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure every layer of a checkpoint (EMA weights), beside a frozen encoder. Changes nothing.

    Accuracy: of a linear classifier on held-out images. CKNNA and CKA: agreement with the encoder. Local - distant and decay:
    spatial self-similarity of tokens. Brackets are 95 % intervals over images.

    Of a study (a folder of runs): every encoder that its runs name, beside the network of a run that was trained without one,
    kept as encoders.json in that folder, where `flowrace report` finds it. The same command again measures only what is missing.

    --control: R2 of a ridge regression from each layer to state (position) and action (displacement), for videos that know
    theirs, beside the noisy pixels and the untrained network. Of a study: kept as control.json, for the report too.
    """
    from harness.data.dataset import pictured
    from harness.data.open import open_dataset, split
    from harness.probing.encoder_table import Asked, is_study
    from harness.probing.layers import probe as measure
    from harness.runtime.environment import prepare

    if control:
        _refuse_of_encoders(name, weights, download, classifier)
        _probe_control(path, step, all_steps, time, samples, overrides, as_json)
        return
    if all_steps:
        raise UserError("--all-steps goes with --control; give --step for another checkpoint than the newest")
    if is_study(path):
        _refuse_of_run(path, step, weights)
        _probe_study(path, name, download, Asked(classifier, time, samples), overrides, as_json)
        return
    spec = spec_of_run(path, overrides)
    choice = chosen(next(iter(spec.method.needs().encoders), None), name, weights, download)
    prepare(spec.runtime.threads)
    file, model, device = model_of_run(path, spec, step)
    dataset, encoder = open_dataset(spec.data), None
    if choice is not None:
        encoder = _opened(
            choice, pictured(dataset), grid=model.config.grid, held_out=spec.data.held_out, device=device
        )
    sides = split(dataset, spec.data.held_out)
    how = {"time": time, "samples": samples, "classifier": classifier}
    found = measure(model, dataset, sides, encoder, device=device, **how)
    if as_json:
        rows = [_plain(row) for row in found.rows]
        about = {"run": path.name, "checkpoint": file.name, "time": time, "probe": classifier}
        counts = {"train": found.train, "held_out": found.held_out}
        click.echo(json.dumps({**about, "encoder": choice and choice.name, **counts, "rows": rows}))
        return
    show(_table(found.rows, " "), narrow=_table(found.rows, "\n"))
    click.echo(
        f"{file.stem}, time {time:g}, {classifier} probe, {found.train} images to learn from, {found.held_out} held out"
    )


def chosen(own: Any, name: str | None, weights: str, download: bool) -> Choice | None:
    """The encoder that the options name; else the run's own, with the file that they name; None where there is neither."""
    from harness.encoders.base import Choice

    if name and (own is None or name != own.name):
        return Choice(name, weights, download=download)
    if own is not None:
        return Choice(own.name, weights or own.weights, own.sha256, download or own.download)
    if weights or download:
        option = f"--weights {weights}" if weights else "--download"
        raise UserError(
            f"{option} of which encoder? This run has none of its own; name one: --encoder family:model"
        )
    return None


def _refuse_of_run(path: Path, step: int | None, weights: str) -> None:
    for option, value in (("--step", step), ("--weights", weights)):
        if value:
            raise UserError(f"{option} {value} is about one run, and {path} is a study; name one of its runs")


def _refuse_of_encoders(name: str | None, weights: str, download: bool, classifier: str) -> None:
    given = {
        "--encoder": name,
        "--weights": weights,
        "--download": download,
        "--probe": classifier != "ridge",
    }
    for option in (option for option, value in given.items() if value):
        raise UserError(
            f"{option} is about encoders, and --control reads layers alone; leave one of them out"
        )


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
    from harness.probing.control_table import Asked
    from harness.probing.encoder_table import is_study

    if is_study(path):
        _refuse_of_run(path, step, "")
        of_study(path, every, Asked(time, samples), overrides, as_json)
        return
    if every and step is not None:
        raise UserError(f"--step {step} and --all-steps ask for one checkpoint and for all; give one of them")
    of_run(path, step, every, Asked(time, samples), overrides, as_json)


def _probe_study(
    path: Path, name: str | None, download: bool, asked: Asked, overrides: tuple[str, ...], as_json: bool
) -> None:
    """All encoders of a study, or the one that is named."""
    from harness.encoders.base import Choice
    from harness.probing.encoder_table import FILE, measure_encoders, study_of

    study = study_of(path, overrides)
    encoders = study.encoders if name is None else {name: study.encoders.get(name, Choice(name))}
    if download:
        encoders = {key: replace(choice, download=True) for key, choice in encoders.items()}
    if not encoders:
        raise UserError(f"no run of {path} has an encoder; name one: --encoder family:model")
    table = measure_encoders(path, study._replace(encoders=encoders), asked)
    if as_json:
        click.echo(json.dumps(table))
        return
    show(_encoders(table["encoders"]))
    control = table["protocol"]["control"]
    beside = f"CKNNA and CKA with the best layer of {control}, which was trained without an encoder"
    click.echo(beside if control else "No finished run without an encoder: no CKNNA and no CKA.")
    click.echo(path / FILE)


def _encoders(encoders: dict[str, Any]) -> Table:
    from metrics import Value

    table = Table("", "parameters", *MEASURES, "layer", box=None, padding=(0, 1))
    for name, one in encoders.items():
        keys = ("accuracy", "cknna", "cka", "local_distant", "spatial_decay")
        values = [None if one[key] is None else Value(**one[key]) for key in keys]
        cells = [_cell(value, " ") for value in values]
        table.add_row(escape(name), f"{one['params']:,}", *cells, one["layer"] or "-")
    return table


def _opened(choice: Choice, dataset: Any, **where: Any) -> Encoder:
    """`open_encoder`, whose advice names fields of a spec, in the words of this command."""
    from harness.encoders.base import open_encoder

    try:
        return open_encoder(choice, dataset, **where)
    except UserError as error:
        message = str(error)
        for field, option in OPTIONS.items():
            message = message.replace(field, option)
        raise UserError(message) from error


def _table(rows: list[Row], between: str) -> Table:
    """`between` parts a number from its interval."""
    table = Table(Column("", overflow="fold"), *MEASURES, box=None, padding=(0, 1))
    for row in rows:
        table.add_row(escape(row.name), *(_cell(value, between) for value in row[1:]))
    return table


def _cell(value: Value | None, between: str) -> str:
    if value is None:
        return "-"
    interval = "" if value.low is None else f"{between}[{value.low:.3f}, {value.high:.3f}]"
    return f"{value.mean:.3f}{escape(interval)}"


def _plain(row: Row) -> dict[str, object]:
    return {key: asdict(v) if hasattr(v, "mean") else v for key, v in row._asdict().items()}
