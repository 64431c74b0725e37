"""The command `flowrace sweep`, which runs a study."""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Any: JSON.
from typing import Any

import click

from harness.config.options import JSON_OPTION, examples, track_options
from harness.errors import UserError
from harness.records.study_folder import StudyFolder
from sweeps.cli.first_stage import run_first_stage
from sweeps.cli.options import study_options
from sweeps.cli.study_run import Mirror, Outputs, run_all, write_study_report
from sweeps.cli.tables import describe_plan, describe_results, exclusion_lines, print_plan, print_results
from sweeps.launch.options import LaunchOptions, launch_options
from sweeps.plan.budget import check_budget
from sweeps.plan.early_ends import EarlyEnds, plan_early_ends, spared_steps
from sweeps.plan.missing_weights import check_weights
from sweeps.plan.plan import make_plan
from sweeps.plan.pretraining import first_folder, first_stage
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
        described = _described(study, directory)
        click.echo(json.dumps(described, indent=1)) if as_json else _print_stages(described)
        return
    run_study(study, directory, launch, Outputs(track, no_track, no_report, as_json))


# Any: JSON.
def _described(study: Study, directory: Path) -> dict[str, Any]:
    """Return the plan of a study as JSON data, with that of its first stage."""
    plan = make_plan(study, directory)
    described = describe_plan(study, plan.runs, directory, plan.excluded)
    if (until := plan_early_ends(plan.runs)) is not None:
        described["until"] = until.row()
    if (first := first_stage(study)) is not None:
        described["pretraining"] = _described(first, first_folder(study, first, directory))
    return described


# Any: JSON.
def _print_stages(described: dict[str, Any]) -> None:
    """Print the plan of a study, after that of its first stage."""
    if (first := described.get("pretraining")) is not None:
        _print_stages(first)
        click.echo()
    print_plan(described)
    for line in EarlyEnds(**described["until"]).lines() if "until" in described else ():
        click.echo(line)


def run_study(study: Study, directory: Path, launch: LaunchOptions, outputs: Outputs) -> None:
    """Run every unfinished run of a study in a folder, and report; exit with the codes of `sweep`.

    The runs of its first stage come before, in their own folder, without a report.
    """
    plan, as_json = make_plan(study, directory), outputs.as_json
    runs = plan.runs
    check_budget(study, runs)
    check_weights(runs, directory)
    run_first_stage(study, directory, launch, outputs)
    mirror = Mirror.prepared(study, directory, launch, outputs)
    with study_lock(directory):
        write_plan(study, plan, directory)
        for line in exclusion_lines(plan.excluded):
            click.echo(line, err=True)
        failures, stopped = run_all(runs, directory, mirror, launch)
        if stopped:
            click.echo("stopped; rerun the same command to resume", err=True)
            sys.exit(130)
        mirror.send_all(runs)
        results = describe_results(study, runs, directory, failures)
        if study.target.ends_early:
            results["spared_steps"] = spared_steps(runs, directory)
        if not as_json:
            print_results(results)
            if spared := results.get("spared_steps"):
                click.echo(f"early ends of runs saved {spared:.0%} of their steps")
        none_done = not any(run["status"] == "done" for run in results["runs"])
        report = None if outputs.no_report or none_done else write_study_report(directory, quiet=as_json)
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
    mirror = Mirror(study, directory)
    with study_lock(directory):
        failures, stopped = run_all(runs, directory, mirror, launch)
        print_results(describe_results(study, runs, directory, failures))
    sys.exit(130 if stopped else 1 if failures else 0)
