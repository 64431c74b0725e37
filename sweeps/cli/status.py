"""The commands about a study that is there: status, retry, and what two studies differ in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from sweeps.launch.options import Choice, launch_options
from sweeps.plan.status import BROKEN, difference, status_of

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
FOLDER = click.argument("directory", type=click.Path(path_type=Path, file_okay=False))


@click.command(epilog="Example: flowrace status runs/digits")
@FOLDER
@AS_JSON
def status(directory: Path, as_json: bool) -> None:
    """Where a study stands: done, running, stopped, failed (with its last line), missing, excluded (with the reason)."""
    found = status_of(directory)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    _print_status(found)


@click.command(epilog="Example: flowrace retry runs/digits")
@FOLDER
@launch_options
def retry(directory: Path, choice: Choice) -> None:
    """Run again what failed or was stopped, from its last checkpoint; what is missing stays so. Exit code 1 if a run fails
    again."""
    from sweeps.cli.sweep import again

    failed = {run["id"] for run in status_of(directory)["runs"] if run["status"] in BROKEN}
    if not failed:
        click.echo(f"nothing failed or stopped in {directory}")
        return
    again(directory, failed, choice)


@click.group(epilog="Example: flowrace study diff digits mine.toml")
def study() -> None:
    """About studies as such."""


@study.command(epilog="Example: flowrace study diff digits mine.toml")
@click.argument("a", metavar="STUDY|FILE.toml|DIR")
@click.argument("b", metavar="STUDY|FILE.toml|DIR")
@AS_JSON
def diff(a: str, b: str, as_json: bool) -> None:
    """Which runs two studies share, and which only one of them has."""
    found = difference(_planned(a), _planned(b))
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for key, text in (("both", "in both"), ("only_a", f"only in {a}"), ("only_b", f"only in {b}")):
        click.echo(f"{text}: {len(found[key])}")
        for name in found[key] if key != "both" else ():
            click.echo(f"  {name}")


def _planned(source: str) -> list[dict[str, Any]]:
    """Id and label of every run of a study by name or file, or of the study that a folder holds."""
    if Path(source).is_dir():
        return [run for run in status_of(Path(source))["runs"] if run["id"]]
    from sweeps.plan.plan import plan
    from sweeps.plan.study import load_study

    return [{"id": cell.id, "label": cell.label} for cell in plan(load_study(source))]


def _print_status(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), title=Text(f"study {found['study']}"), title_justify="left")
    for column in ("run", "", "status", "step"):
        table.add_column(column, justify="right" if column == "step" else "left", no_wrap=True)
    for run in found["runs"]:
        table.add_row(*map(Text, (run["id"] or "", run["label"], run["status"], str(run["step"]))))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for run in found["runs"]:
        if "reason" in run:
            click.echo(f"{run['label']} {run['status']}: {run['reason']}")
    click.echo(", ".join(f"{count} {name}" for name, count in found["counts"].items()) or "no runs")
