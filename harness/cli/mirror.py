"""`flowrace mirror`: an MLflow store brought up to date with, or rebuilt from, run directories."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import click

from harness.config.options import JSON_OPTION
from harness.errors import UserError
from harness.files.progress import tracked
from harness.records.mlflow_store import shown, store_uri
from harness.records.record import Record, find_records
from harness.records.study_folder import StudyFolder


@click.command(epilog="Example: flowrace mirror runs --to sqlite:///mlflow.db")
@click.argument(
    "directories",
    metavar="DIR...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
)
@click.option(
    "--to",
    "uri",
    metavar="URI",
    help="MLflow store. Default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.",
)
@JSON_OPTION
def mirror(directories: tuple[Path, ...], uri: str | None, as_json: bool) -> None:
    """Bring an MLflow store up to date with run directories, or folders of them; only new points are sent.

    Runs of a study become children of the study's run, as in a sweep; other runs become children of a run
    named after their folder. Broken runs are skipped and listed at the end, with exit code 2.
    """
    records = find_records(*(directory.resolve() for directory in directories))
    if not records:
        raise UserError(
            f"no run directory in {', '.join(map(str, directories))}; give the --out of a run or a sweep"
        )
    folders: dict[Path, list[Record]] = defaultdict(list)
    for record in records:
        folders[record.path.parent].append(record)
    mirrored, reasons = [], []
    for folder, found in tracked(sorted(folders.items()), "mirroring"):
        study = StudyFolder(folder)
        try:
            name, complete = study.name, study.is_complete(found)
        except UserError as error:
            reasons.append(str(error))
            continue
        runs, points, broken = _send(study, found, uri, name, complete)
        mirrored.append({"folder": str(folder), "study": name, "runs": runs, "points": points})
        reasons += broken
    store = shown(store_uri(uri))
    if as_json:
        click.echo(json.dumps({"store": store, "folders": mirrored}, indent=1))
    else:
        for row in mirrored:
            click.echo(f"{row['study']}: {row['runs']} runs, {row['points']} new points")
        click.echo(store)
    if reasons:
        raise UserError("; ".join(reasons))


def _send(
    study: StudyFolder, records: list[Record], uri: str | None, name: str, complete: bool
) -> tuple[int, int, Sequence[str]]:
    """Return the numbers of mirrored runs and of new points, and the error of each broken run."""
    from harness.records.mlflow_mirror import Unsent, mirror

    files = [study.study_file] if study.study_file.is_file() else []
    try:
        summary = mirror(records, uri=uri, study=name, artifacts=files, complete=complete)
    except Unsent as error:
        return error.summary.runs, error.summary.points, list(error.reasons)
    return summary.runs, summary.points, []
