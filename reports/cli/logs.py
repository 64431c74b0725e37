"""The command `flowrace logs convert`: logs of other tools as one tidy CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.config.options import JSON_OPTION, examples
from harness.files.csv_cells import inert
from reports.cli.options import log_options

if TYPE_CHECKING:
    from reports.logs.curves import Understood


@click.group(epilog=examples("flowrace logs convert export.csv -o curves.csv"))
def logs() -> None:
    """Read logs of other tools: W&B, TensorBoard, Hugging Face, Lightning, ADM's evaluator, plain text."""


@logs.command(
    epilog=examples(
        "flowrace logs convert export.csv -o curves.csv",
        r"flowrace logs convert train-*.log -o curves.csv --pattern 'step (?P<step>\d+).* fid (?P<fid>\S+)'",
        then="The file is read by flowrace audit, report and figures, which also read the logs themselves.",
    )
)
@click.argument("sources", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@log_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="CSV file to write: method, seed, step, metric, value.",
)
@JSON_OPTION
def convert(
    sources: tuple[Path, ...], map_file: Path | None, patterns: tuple[str, ...], output: Path, as_json: bool
) -> None:
    """Show what was understood of logs, and write their curves as a tidy CSV.

    FILE is a CSV export, an event file, a JSON log, a text, or a folder of them. Method and seed come from
    the names of runs (self_flow-seed0, repa_s1) or from --pattern; what is not clear is rejected.
    """
    from harness.errors import UserError
    from harness.files.files import write_atomic, writing
    from reports.logs.log_map import read_map
    from reports.logs.read import read_logs_of

    if output.resolve() in [source.resolve() for source in sources]:
        raise UserError(f"output {output} is one of the logs; give another file")
    found = read_logs_of(sources, read_map(map_file, patterns))
    with writing(output):
        write_atomic(output, tidy(found).encode())
    if as_json:
        click.echo(
            json.dumps({"runs": summary(found), "notes": list(found.notes), "csv": str(output)}, indent=1)
        )
        return
    _print(summary(found))
    for note in found.notes:
        click.echo(f"- {note}")
    click.echo(output)


def summary(found: Understood) -> list[dict[str, Any]]:
    """Return what was understood of each curve."""
    return [
        {
            "run": curve.run,
            "method": curve.method,
            "seed": curve.seed,
            "metric": curve.metric,
            "points": len(curve.points),
            "first_step": min(point.step for point in curve.points),
            "last_step": max(point.step for point in curve.points),
            "source": curve.source,
        }
        for curve in found.curves
    ]


def tidy(found: Understood) -> str:
    """Return the curves as CSV text, with the columns of costs and protocols that some point has."""
    from reports.logs.tables import COLUMNS, COSTS

    points = [point for curve in found.curves for point in curve.points]
    costs = [axis for axis in COSTS if any(axis in point.costs for point in points)]
    protocol = any(point.protocol for point in points)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *costs, *(["protocol"] if protocol else [])])
    for curve in found.curves:
        for point in curve.points:
            row = [inert(curve.method), curve.seed, point.step, inert(curve.metric), repr(point.value)]
            row += [repr(point.costs[axis]) if axis in point.costs else "" for axis in costs]
            writer.writerow([*row, *([inert(point.protocol)] if protocol else [])])
    return text.getvalue()


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from harness.files.terminal import Console

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("run", "method", "seed", "metric", "points", "steps", "source"):
        table.add_column(name, overflow="fold")
    for row in rows:
        steps = f"{row['first_step']} to {row['last_step']}"
        cells = [row[name] for name in ("run", "method", "seed", "metric", "points")]
        table.add_row(*map(str, cells), steps, row["source"])
    Console(width=None if Console().is_terminal else 120, highlight=False, markup=False).print(table)
