"""The command that makes a lost MLflow store again from records alone."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import click

from harness.errors import UserError
from harness.record import Record, find_records
from harness.spec import read_toml

STUDY = "study.toml"


@click.command(epilog="Example: flowrace mirror runs --to sqlite:///mlflow.db")
@click.argument("directories", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--to",
    "uri",
    metavar="URI",
    help="MLflow store (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
def mirror(directories: tuple[Path, ...], uri: str | None, as_json: bool) -> None:
    """Bring an MLflow store up to date with run directories, or folders of them. What it holds already is not sent again.

    Runs of a study become children of its run, as when it was swept.
    """
    from harness.tracking import mirror as send

    records = find_records(*directories)
    if not records:
        raise UserError(
            f"no run directory in {', '.join(map(str, directories))}; give the --out of a run or a sweep"
        )
    folders: dict[Path, list[Record]] = defaultdict(list)
    for record in records:
        folders[record.path.parent].append(record)
    told = []
    with click.progressbar(sorted(folders.items()), label="mirroring", file=sys.stderr) as bar:
        for folder, found in bar:
            file = folder / STUDY
            study = str(read_toml(file).get("name", folder.name)) if file.is_file() else None
            summary = send(found, uri=uri, study=study, artifacts=[file] if study else (), complete=True)
            told.append(
                {"folder": str(folder), "study": study, "runs": summary.runs, "points": summary.points}
            )
    if as_json:
        click.echo(json.dumps({"store": summary.uri, "folders": told}, indent=1))
        return
    for one in told:
        click.echo(f"{one['study'] or one['folder']}: {one['runs']} runs, {one['points']} new points")
    click.echo(summary.uri)
