"""`flowrace export`: records of runs as a table, or the weights of a run in a released layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.config.options import STEP_OPTION, examples, warn_of
from harness.errors import UserError
from harness.files.csv_cells import inert
from harness.files.files import replacing, writing
from harness.records.integrity import named_misfits
from harness.records.record import find_records
from harness.records.tables import TABLES

if TYPE_CHECKING:
    import pandas as pd

# The names in harness/exchange/export_run.py, which imports torch.
LAYOUTS = ("sit", "repa", "self-flow", "sra", "irepa", "reg", "mmdit", "diffusers")


@click.command(
    epilog=examples(
        "flowrace export runs/digits --table evaluations -o evaluations.csv",
        "flowrace export runs/first/0123456789ab --layout repa -o weights.pt",
    )
)
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--table",
    type=click.Choice(list(TABLES)),
    help="One row per run (runs, the default), per logged step, per value of a metric, or per reading of the "
    "gradients (train.log_gradients_every).",
)
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    help="Write the EMA weights of one run as released code reads them, instead of a table.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write: .csv or .parquet (default: CSV to standard output); .pt or .safetensors for "
    "weights; a folder for layout diffusers.",
)
@STEP_OPTION
@click.option("--overwrite", is_flag=True, help="Replace an existing file of weights.")
def export(
    directories: tuple[Path, ...],
    table: str | None,
    layout: str | None,
    output: Path | None,
    step: int | None,
    overwrite: bool,
) -> None:
    """Write the records of runs as one tidy table, for pandas, R or a spreadsheet; or, with --layout, the
    weights of a run as a file that released code loads."""
    if layout is None:
        return _export_table(directories, table or "runs", output, step)
    if table is not None:
        raise UserError("--table writes records and --layout writes weights; give one of them")
    if len(directories) != 1 or output is None:
        raise UserError(
            f"--layout {layout} writes the weights of one run to a file: give one RUN and -o FILE"
        )
    return _export_weights(directories[0], layout, output, step, overwrite)


def _export_table(directories: tuple[Path, ...], table: str, output: Path | None, step: int | None) -> None:
    if step is not None:
        raise UserError("--step chooses weights, and a table has all steps; leave it out, or give --layout")
    if output is not None and output.suffix not in (".csv", ".parquet"):
        raise UserError(f"--output {output}: the file must end in .csv or .parquet")
    records = find_records(*directories)
    warn_of(named_misfits(records))
    frame = TABLES[table](records)
    if output is None:
        click.echo(_csv(frame), nl=False)
        return
    with writing(output), replacing(output) as temporary:
        if output.suffix == ".csv":
            temporary.write_text(_csv(frame), encoding="utf-8", newline="")
        else:
            frame.to_parquet(temporary, index=False)
    click.echo(output)


def _csv(frame: pd.DataFrame) -> str:
    """Return a table as CSV, without cells that a spreadsheet would run."""
    texts = frame.select_dtypes(exclude="number").columns
    cells = frame.assign(**{name: frame[name].map(inert) for name in texts})
    return cells.rename(columns=inert).to_csv(index=False)


def _export_weights(run: Path, layout: str, output: Path, step: int | None, overwrite: bool) -> None:
    from harness.exchange.export_run import export_weights

    if output.exists() and (not overwrite or output.is_dir()):
        hint = "give another --output" + ("" if output.is_dir() else ", or --overwrite")
        raise UserError(f"{output} already exists; {hint}")
    if not output.resolve().parent.is_dir():
        raise UserError(f"cannot write {output}: no such folder {output.parent}")
    for note in export_weights(run, layout, output, step).notes:
        click.echo(note)
    click.echo(output)
