"""The parts of a command that runs a study: its runs, the mirror of its records, and its report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from harness.errors import UserError
from harness.records.record import Record
from harness.records.study_folder import STUDY
from sweeps.cli.display import make_display
from sweeps.cli.preparation import Store, no_store, prepare
from sweeps.launch.base import stop_on_signals
from sweeps.launch.local import LocalLauncher
from sweeps.launch.options import LaunchOptions, threads_and_launcher
from sweeps.launch.real_samples import prepare_real_samples
from sweeps.launch.runner import StudyRunner
from sweeps.plan.plan import PlannedRun
from sweeps.plan.run_order import in_balanced_order
from sweeps.plan.study import Study


@dataclass(frozen=True)
class Outputs:
    """The outputs of a command in addition to its records."""

    track: str | None = None
    no_track: bool = False
    no_report: bool = False
    as_json: bool = False


@dataclass(frozen=True)
class Mirror:
    """Sends each record to the MLflow store as its run finishes; records that fail are reported and sent
    again at the end."""

    study: Study
    directory: Path
    store: Store = no_store

    @classmethod
    def prepared(cls, study: Study, directory: Path, launch: LaunchOptions, outputs: Outputs) -> Mirror:
        """Return the mirror of a study that is about to run, with the store that a command asks for."""
        made = prepare(outputs.track, launch, no_track=outputs.no_track, no_report=outputs.no_report)
        return cls(study, directory, made)

    def send(self, record: Record) -> None:
        self._send([record])

    def send_all(self, runs: Sequence[PlannedRun]) -> None:
        records = [Record(self.directory / run.id) for run in runs]
        self._send([record for record in records if record.status != "missing"], complete=True)

    def _send(self, records: Sequence[Record], *, complete: bool = False) -> None:
        from harness.records.mlflow_mirror import mirror

        uri = self.store()
        if uri is None:
            return
        try:
            artifacts = [self.directory / STUDY]
            mirror(records, uri=uri, study=self.study.name, artifacts=artifacts, complete=complete)
        except UserError as error:
            click.echo(
                f"not mirrored: {error}. The records are complete; rerun the same command to mirror them.",
                err=True,
            )


def run_all(
    runs: Sequence[PlannedRun], directory: Path, mirror: Mirror, launch: LaunchOptions
) -> tuple[dict[str, str], bool]:
    """Return the reasons of the failed runs, and whether a signal stopped the sweep."""
    threads, launcher = threads_and_launcher(launch, [run.spec.runtime.threads for run in runs], directory)
    runs = [run.with_threads(launch.threads or run.spec.runtime.threads or threads) for run in runs]
    display = make_display(runs, directory)
    with launcher, stop_on_signals(launcher), display:
        ordered: Iterable[PlannedRun] = runs
        if isinstance(launcher, LocalLauncher):
            prepare_real_samples(runs, directory, launcher, display.note)
            ordered = in_balanced_order(runs, directory, launcher.slots)
        runner = StudyRunner(ordered, directory, launcher, display, mirror.send, processes=launch.processes)
        runner.run()
    return runner.failures, launcher.stopped_by is not None


def write_study_report(directory: Path, *, quiet: bool, claims: Sequence[Path] = ()) -> str | None:
    """Write the report; print its verdict, its caveats and, on the last line, its path.

    The runs are finished, so a report that cannot be written is no failure of the sweep.
    """
    from reports.pages.page import write_report

    path = directory / "report.html"
    try:
        report = write_report([directory], path, claims=claims)
    except UserError as error:
        click.echo(f"no report: {error}", err=True)
        return None
    if not quiet:
        click.echo(report.headline)
        for note in report.report.caveats:
            click.echo(f"- {note}")
        click.echo(path)
    return str(path)
