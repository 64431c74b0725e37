"""`flowrace export`: runs, training curves or evaluations as a CSV or Parquet file."""

from __future__ import annotations

from pathlib import Path

import click

from harness.errors import UserError
from harness.records.record import find_records
from harness.records.tables import TABLES


@click.command(epilog="Example: flowrace export runs/digits --table evaluations -o evaluations.csv")
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--table",
    type=click.Choice(list(TABLES)),
    default="runs",
    show_default=True,
    help="One row per run, per logged step, or per value of a metric.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write, .csv or .parquet. Default: CSV to standard output.",
)
def export(directories: tuple[Path, ...], table: str, output: Path | None) -> None:
    """Write the records of runs as one tidy table, for pandas, R or a spreadsheet."""
    if output is not None and output.suffix not in (".csv", ".parquet"):
        raise UserError(f"--output {output}: the file must end in .csv or .parquet")
    frame = TABLES[table](find_records(*directories))
    if output is None:
        click.echo(frame.to_csv(index=False), nl=False)
        return
    try:
        frame.to_csv(output, index=False) if output.suffix == ".csv" else frame.to_parquet(
            output, index=False
        )
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error
    click.echo(output)
