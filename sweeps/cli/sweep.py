"""The command `flowrace sweep`, which runs a study."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from harness.config.options import JSON_OPTION, examples, track_options
from harness.errors import UserError
from harness.records.record import Record
from harness.records.study_folder import STUDY, StudyFolder
from sweeps.cli.display import make_display
from sweeps.cli.options import study_options
from sweeps.cli.tables import describe_plan, describe_results, exclusion_lines, print_plan, print_results
from sweeps.launch.base import stop_on_signals
from sweeps.launch.options import LaunchOptions, launch_options, threads_and_launcher
from sweeps.launch.real_samples import prepare_real_samples
from sweeps.launch.runner import StudyRunner
from sweeps.plan.budget import check_budget
from sweeps.plan.missing_weights import check_weights
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.study import Study, load_study
from sweeps.plan.study_folder import study_lock, write_plan


@click.command(
    epilog=examples(
        "flowrace sweep digits --dry-run",
        "flowrace sweep digits --set methods.repa.layer=2",
        then="Rerun the same command to resume; finished runs are kept.",
    )
)
@study_options
@launch_options
@click.option("--dry-run", is_flag=True, help="Print the runs with their status and cost; start nothing.")
@JSON_OPTION
@track_options
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
    launch: LaunchOptions,
) -> None:
    """Run every unfinished run of a study, then write the report.

    Exit code 1 if a run failed, 130 if interrupted.
    """
    study = load_study(source, overrides)
    directory = out or Path("runs") / study.name
    if dry_run:
        plan = make_plan(study, directory)
        described = describe_plan(study, plan.runs, directory, plan.excluded)
        click.echo(json.dumps(described, indent=1)) if as_json else print_plan(described)
        return
    run_study(study, directory, launch, Outputs(track, no_track, no_report, as_json))


@dataclass(frozen=True)
class Outputs:
    """The outputs of a sweep in addition to its records."""

    track: str | None = None
    no_track: bool = False
    no_report: bool = False
    as_json: bool = False


def run_study(study: Study, directory: Path, launch: LaunchOptions, outputs: Outputs) -> None:
    """Run every unfinished run of a study in a folder, and report; exit with the codes of `sweep`."""
    plan, as_json = make_plan(study, directory), outputs.as_json
    runs = plan.runs
    check_budget(study, runs)
    check_weights(runs, directory)
    mirror = _Mirror(study, directory, None if outputs.no_track else _create_store(outputs.track))
    with study_lock(directory):
        write_plan(study, plan, directory)
        for line in exclusion_lines(plan.excluded):
            click.echo(line, err=True)
        failures, stopped = _run_all(runs, directory, mirror, launch)
        if stopped:
            click.echo("stopped; rerun the same command to resume", err=True)
            sys.exit(130)
        mirror.send_all(runs)
        results = describe_results(study, runs, directory, failures)
        if not as_json:
            print_results(results)
        none_done = not any(run["status"] == "done" for run in results["runs"])
        report = None if outputs.no_report or none_done else _write_report(directory, quiet=as_json)
        if as_json:
            click.echo(json.dumps({**results, "report": report}, indent=1))
    sys.exit(1 if failures else 0)


def rerun(directory: Path, ids: set[str], launch: LaunchOptions) -> None:
    """Run some runs of the study in a folder; exit with the codes of `sweep`."""
    file = StudyFolder(directory).study_file
    study = load_study(str(file))
    runs = [run for run in make_plan(study, directory).runs if run.id in ids]
    if missing := ids - {run.id for run in runs}:
        raise UserError(
            f"{file} no longer plans {', '.join(sorted(missing))}, because the data or the presets have "
            "changed; run its sweep again"
        )
    check_weights(runs, directory)
    mirror = _Mirror(study, directory, None)
    with study_lock(directory):
        failures, stopped = _run_all(runs, directory, mirror, launch)
        print_results(describe_results(study, runs, directory, failures))
    sys.exit(130 if stopped else 1 if failures else 0)


@dataclass(frozen=True)
class _Mirror:
    """Sends each record to the MLflow store as its run finishes; records that fail are reported and sent
    again at the end."""

    study: Study
    directory: Path
    uri: str | None

    def send(self, record: Record) -> None:
        self._send([record])

    def send_all(self, runs: Sequence[PlannedRun]) -> None:
        records = [Record(self.directory / run.id) for run in runs]
        self._send([record for record in records if record.status != "missing"], complete=True)

    def _send(self, records: Sequence[Record], *, complete: bool = False) -> None:
        from harness.records.mlflow_mirror import mirror

        if self.uri is None:
            return
        try:
            artifacts = [self.directory / STUDY]
            mirror(records, uri=self.uri, study=self.study.name, artifacts=artifacts, complete=complete)
        except UserError as error:
            click.echo(
                f"not mirrored: {error}. The records are complete; rerun the same command to mirror them.",
                err=True,
            )


def _create_store(track: str | None) -> str | None:
    """Create the store before anything starts. A failure is an error only if `--track` named the store."""
    from harness.records.mlflow_store import create_store, store_uri

    try:
        create_store(track)
    except UserError as error:
        if track is not None:
            raise
        click.echo(f"not tracked: {error}", err=True)
        return None
    return store_uri(track)


def _run_all(
    runs: Sequence[PlannedRun], directory: Path, mirror: _Mirror, launch: LaunchOptions
) -> tuple[dict[str, str], bool]:
    """Return the reasons of the failed runs, and whether a signal stopped the sweep."""
    threads, launcher = threads_and_launcher(launch, [run.spec.runtime.threads for run in runs], directory)
    runs = [run.with_threads(launch.threads or run.spec.runtime.threads or threads) for run in runs]
    display = make_display(runs, directory)
    with launcher, stop_on_signals(launcher), display:
        if launch.launcher == "local":
            prepare_real_samples(runs, directory, launcher, display.note)
        runner = StudyRunner(runs, directory, launcher, display, mirror.send, processes=launch.processes)
        runner.run()
    return runner.failures, launcher.stopped_by is not None


def _write_report(directory: Path, *, quiet: bool) -> str | None:
    """Write the report; print its verdict, its caveats and, on the last line, its path.

    The runs are finished, so a report that cannot be written is no failure of the sweep.
    """
    from reports.pages.page import write_report

    path = directory / "report.html"
    try:
        report = write_report([directory], path)
    except UserError as error:
        click.echo(f"no report: {error}", err=True)
        return None
    if not quiet:
        click.echo(report.headline)
        for note in report.report.caveats:
            click.echo(f"- {note}")
        click.echo(path)
    return str(path)
