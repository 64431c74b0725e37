"""`flowrace probe`: what the layers of a run's network know, as a table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.commands import AS_JSON, SETTING, STEP, model_of_run, spec_of_run
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.probe import Row
    from metrics import Value


@click.command(epilog="Example: flowrace probe runs/first/0123456789ab --encoder local:small --json")
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
@STEP
@click.option("--encoder", "name", metavar="NAME", help="Compare with this one; by default the run's own.")
@click.option("--weights", default="", metavar="FILE", help="Weights of --encoder, where it needs a file.")
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
    time: float,
    samples: int,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure every layer of a checkpoint (EMA weights), beside a frozen encoder. Changes nothing.

    Accuracy: linear probe on held-out images. CKNNA and CKA: agreement with the encoder. Local - distant and decay: spatial
    self-similarity of tokens. Brackets are 95 % intervals over images.
    """
    from harness.data.base import open_dataset, split
    from harness.encoders.base import Choice, open_encoder
    from harness.environment import prepare
    from harness.probe import probe as measure

    if weights and not name:
        raise UserError(f"--weights {weights} says whose weights? Name it with --encoder family:model")
    spec = spec_of_run(path, overrides)
    choice = Choice(name, weights) if name else next(iter(spec.method.needs().encoders), None)
    prepare(spec.runtime.threads)
    file, model, device = model_of_run(path, spec, step)
    dataset, encoder = open_dataset(spec.data), None
    if choice is not None:
        held_out, grid = spec.data.held_out, model.config.grid
        encoder = open_encoder(choice, dataset, grid=grid, held_out=held_out, device=device)
    sides = split(dataset, spec.data.held_out)
    found = measure(model, dataset, sides, encoder, time=time, samples=samples, device=device)
    if as_json:
        rows = [_plain(row) for row in found.rows]
        about = {"run": path.name, "checkpoint": file.name, "time": time}
        counts = {"train": found.train, "held_out": found.held_out}
        click.echo(json.dumps({**about, "encoder": choice and choice.name, **counts, "rows": rows}))
        return
    Console().print(_table(found.rows))
    click.echo(f"{file.stem}, time {time:g}, {found.train} images to learn from, {found.held_out} held out")


def _table(rows: list[Row]) -> Table:
    table = Table("", "accuracy", "CKNNA", "CKA", "local - distant", "decay", box=None, padding=(0, 2))
    for row in rows:
        table.add_row(escape(row.name), *(_cell(value) for value in row[1:]))
    return table


def _cell(value: Value | None) -> str:
    if value is None:
        return "-"
    interval = "" if value.low is None else f" [{value.low:.3f}, {value.high:.3f}]"
    return f"{value.mean:.3f}{escape(interval)}"


def _plain(row: Row) -> dict[str, object]:
    return {key: asdict(v) if hasattr(v, "mean") else v for key, v in row._asdict().items()}
