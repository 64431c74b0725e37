"""The command that makes a lost MLflow store again from records alone."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import click

from harness.errors import UserError
from harness.records.mlflow_store import shown, store_uri
from harness.records.record import Record, find_records
from harness.records.study_folder import STUDY, is_whole, study_of


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

    Runs of a study become children of its run, as when it was swept; others, of a run named after their folder. A run that is
    broken stops no other: it is named at the end, with exit code 2.
    """
    records = find_records(*(directory.resolve() for directory in directories))
    if not records:
        raise UserError(
            f"no run directory in {', '.join(map(str, directories))}; give the --out of a run or a sweep"
        )
    folders: dict[Path, list[Record]] = defaultdict(list)
    for record in records:
        folders[record.path.parent].append(record)
    sent, reasons = [], []
    with click.progressbar(sorted(folders.items()), label="mirroring", file=sys.stderr) as bar:
        for folder, found in bar:
            try:
                study, whole = study_of(folder), is_whole(folder, found)
            except UserError as error:
                reasons.append(str(error))
                continue
            runs, points, broken = _send(folder, found, uri, study, whole)
            sent.append({"folder": str(folder), "study": study, "runs": runs, "points": points})
            reasons += broken
    store = shown(store_uri(uri))
    if as_json:
        click.echo(json.dumps({"store": store, "folders": sent}, indent=1))
    else:
        for one in sent:
            click.echo(f"{one['study']}: {one['runs']} runs, {one['points']} new points")
        click.echo(store)
    if reasons:
        raise UserError("; ".join(reasons))


def _send(
    folder: Path, records: list[Record], uri: str | None, study: str, whole: bool
) -> tuple[int, int, list[str]]:
    """Return the number of mirrored runs and of new points, and the reasons why other runs were not mirrored."""
    from harness.records.mlflow_mirror import Unsent, mirror

    files = [file for file in (folder / STUDY,) if file.is_file()]
    try:
        summary = mirror(records, uri=uri, study=study, artifacts=files, complete=whole)
    except Unsent as error:
        return error.summary.runs, error.summary.points, list(error.reasons)
    return summary.runs, summary.points, []
