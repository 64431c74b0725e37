"""Later evaluations of many runs, one job for each run, with any launcher."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.records.record import Record, failure_reason
from harness.records.study_folder import StudyFolder
from sweeps.launch.base import Job, Launcher, Started


def evaluate_runs(
    records: Sequence[Record],
    directory: Path,
    words: Sequence[str],
    launcher: Launcher,
    notify: Callable[[Record, str | None], None],
) -> dict[str, str]:
    """Run `flowrace eval RUN` with these options for every record; return the reasons of failures by run id.

    `notify` receives a record when its job starts (None), and `done` or the reason of a failure when it ends.
    """
    by_name = {f"{record.id}-eval": record for record in records}
    folder, failures = StudyFolder(directory), {}
    for name, record in by_name.items():
        log = folder.log_file(name)
        log.parent.mkdir(exist_ok=True)
        launcher.submit(Job(name, evaluation_command(record.path, words), log))
    while launcher.active:
        for event in launcher.poll():
            record = by_name[event.name]
            if isinstance(event, Started):
                notify(record, None)
            elif event.code == 0:
                notify(record, "done")
            elif launcher.stopped_by is None:
                log_of = Record(directory / event.name)
                failures[record.id] = failure_reason(log_of, exit_code=event.code)
                notify(record, f"FAILED: {failures[record.id]}")
    return failures


def evaluation_command(run: Path, words: Sequence[str]) -> tuple[str, ...]:
    """Return the command line that evaluates one run."""
    return (sys.executable, "-m", "harness.cli.main", "eval", str(run), *words, "--json")
