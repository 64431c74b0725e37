"""The command about many runs: sweep."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from harness.errors import UserError
from harness.records.record import Record
from sweeps.cli.display import Bars, Lines
from sweeps.cli.tables import describe_plan, describe_results, left_out_lines, print_plan, print_results
from sweeps.launch.base import stop_on_signals
from sweeps.launch.options import Choice, launch_options, threads_and_launcher
from sweeps.launch.runner import Race
from sweeps.plan.budget import check_budget
from sweeps.plan.plan import STUDY, Cell, plan, whole_plan, write_plan
from sweeps.plan.study import Study, load_study
from sweeps.plan.study_folder import alone_in, study_options


@click.command(
    epilog="Example: flowrace sweep digits --dry-run. The same command again continues; a finished run stays as it is."
)
@study_options
@launch_options
@click.option(
    "--dry-run", is_flag=True, help="Print the runs, where they stand and what they cost; start nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
@click.option("--track", metavar="URI", help="MLflow store (default: sqlite:///mlflow.db).")
@click.option("--no-track", is_flag=True, help="Do not mirror the runs into MLflow.")
@click.option("--no-report", is_flag=True, help="Do not write report.html at the end.")
def sweep(
    source: str,
    out: Path | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    track: str | None,
    no_track: bool,
    no_report: bool,
    choice: Choice,
) -> None:
    """Run a study: every run that is not done yet, then the report. Exit code 1 if a run failed, 130 if interrupted."""
    study = load_study(source, overrides)
    whole = whole_plan(study)
    cells = whole.cells
    directory = out or Path("runs") / study.name
    if dry_run:
        described = describe_plan(study, cells, directory, whole.left_out)
        click.echo(json.dumps(described, indent=1)) if as_json else print_plan(described)
        return
    check_budget(study, cells)
    mirror = _Mirror(study, directory, None if no_track else _store(track))
    with alone_in(directory):
        write_plan(study, whole, directory)
        for line in left_out_lines(whole.left_out):
            click.echo(line, err=True)
        failures, stopped = _race(cells, directory, mirror, choice)
        if stopped:
            click.echo("stopped; the same command continues", err=True)
            sys.exit(130)
        mirror.whole(cells)
        results = describe_results(study, cells, directory, failures)
        if not as_json:
            print_results(results)
        none_done = not any(run["status"] == "done" for run in results["runs"])
        report = None if no_report or none_done else _report(directory, quiet=as_json)
        if as_json:
            click.echo(json.dumps({**results, "report": report}, indent=1))
    sys.exit(1 if failures else 0)


def again(directory: Path, ids: set[str], choice: Choice) -> None:
    """Run some runs of the study that a folder holds; exits as `sweep` does."""
    study = load_study(str(directory / STUDY))
    cells = [cell for cell in plan(study) if cell.id in ids]
    if missing := ids - {cell.id for cell in cells}:
        raise UserError(
            f"{directory / STUDY} no longer plans {', '.join(sorted(missing))}: the data or the presets have changed; "
            "run its sweep again"
        )
    mirror = _Mirror(study, directory, None)
    with alone_in(directory):
        failures, stopped = _race(cells, directory, mirror, choice)
        print_results(describe_results(study, cells, directory, failures))
    sys.exit(130 if stopped else 1 if failures else 0)


@dataclass(frozen=True)
class _Mirror:
    """Sends records to the store as they come; what could not be sent is said, and made up for at the end."""

    study: Study
    directory: Path
    uri: str | None

    def one(self, record: Record) -> None:
        self._send([record])

    def whole(self, cells: Sequence[Cell]) -> None:
        records = [Record(self.directory / cell.id) for cell in cells]
        self._send([r for r in records if r.status != "missing"], complete=True)

    def _send(self, records: Sequence[Record], *, complete: bool = False) -> None:
        from harness.records.mlflow_mirror import mirror

        if self.uri is None:
            return
        try:
            artifacts = [self.directory / STUDY]
            mirror(records, uri=self.uri, study=self.study.name, artifacts=artifacts, complete=complete)
        except UserError as error:
            click.echo(
                f"not mirrored: {error}. The records are whole; the same command mirrors them.", err=True
            )


def _store(track: str | None) -> str | None:
    """Create the store before anything starts. Where it cannot be, that is an error only if a store was named."""
    from harness.records.mlflow_store import create_store, store_uri

    try:
        create_store(track)
    except UserError as error:
        if track is not None:
            raise
        click.echo(f"not tracked: {error}", err=True)
        return None
    return store_uri(track)


def _race(
    cells: Sequence[Cell], directory: Path, mirror: _Mirror, choice: Choice
) -> tuple[dict[str, str], bool]:
    """The reasons of the runs that failed, and whether a signal stopped it."""
    threads, launcher = threads_and_launcher(choice, [cell.spec.runtime.threads for cell in cells], directory)
    cells = [cell.with_threads(choice.threads or cell.spec.runtime.threads or threads) for cell in cells]
    display = (Bars if sys.stderr.isatty() else Lines)(cells, directory)
    with launcher, stop_on_signals(launcher), display:
        race = Race(cells, directory, launcher, display, mirror.one, processes=choice.processes)
        race.run()
    return race.failures, launcher.stopped_by is not None


def _report(directory: Path, *, quiet: bool) -> str:
    """Write the report; say its verdict, what must be said beside it, and as the last line where it lies."""
    from reports.pages.page import write_report

    path = directory / "report.html"
    report = write_report([directory], path)
    if not quiet:
        click.echo(report.headline)
        for note in report.caveats:
            click.echo(f"- {note}")
        click.echo(path)
    return str(path)
