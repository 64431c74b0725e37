"""`flowrace probe`: what the layers of a run's network know, as a table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Column, Table

from harness.commands import AS_JSON, SETTING, STEP, model_of_run, spec_of_run
from harness.errors import UserError
from harness.terminal import show

if TYPE_CHECKING:
    from harness.encoders.base import Choice, Encoder
    from harness.probe import Row
    from metrics import Value


OPTIONS = {
    "set method.encoder.download=true": "give --download",
    "method.encoder.weights = ": "--weights ",
    "method.encoder.weights": "--weights",
    "clear that field": "leave it out",
}
"""What the advice of encoders says, and what it is called here."""


@click.command(epilog="Example: flowrace probe runs/first/0123456789ab --encoder local:small --json")
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
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
    help="At most so many images to learn from, and so many held-out ones to measure on.",
)
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
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure every layer of a checkpoint (EMA weights), beside a frozen encoder. Changes nothing.

    Accuracy: of a linear classifier on held-out images. CKNNA and CKA: agreement with the encoder. Local - distant and decay:
    spatial self-similarity of tokens. Brackets are 95 % intervals over images.
    """
    from harness.data.base import open_dataset, split
    from harness.environment import prepare
    from harness.probe import probe as measure

    spec = spec_of_run(path, overrides)
    choice = chosen(next(iter(spec.method.needs().encoders), None), name, weights, download)
    prepare(spec.runtime.threads)
    file, model, device = model_of_run(path, spec, step)
    dataset, encoder = open_dataset(spec.data), None
    if choice is not None:
        encoder = _opened(choice, dataset, grid=model.config.grid, held_out=spec.data.held_out, device=device)
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
    measures = ("accuracy", "CKNNA", "CKA", "local - distant", "decay")
    table = Table(Column("", overflow="fold"), *measures, box=None, padding=(0, 1))
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
