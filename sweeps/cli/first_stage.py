"""The run of the stages before a study, which every command does that trains the study's runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from sweeps.cli.study_run import Mirror, Outputs, run_all
from sweeps.launch.options import LaunchOptions
from sweeps.plan.budget import check_budget
from sweeps.plan.missing_weights import check_weights
from sweeps.plan.plan import StudyPlan, make_plan
from sweeps.plan.pretraining import first_folder, first_stage
from sweeps.plan.study import Study
from sweeps.plan.study_folder import study_lock, write_plan


def run_first_stage(study: Study, directory: Path, launch: LaunchOptions, outputs: Outputs) -> None:
    """Run every unfinished run of the stages before a study, the earliest first; nothing without one.

    They are in their own folders next to the study's, without a report. Exits if a run has no end.
    """
    first = first_stage(study)
    if first is None:
        return
    folder = first_folder(study, first, directory)
    plan = make_plan(first, folder)
    check_budget(first, plan.runs)
    check_weights(plan.runs, folder)
    run_first_stage(first, folder, launch, outputs)
    _run(first, plan, folder, launch, outputs)


def _run(study: Study, plan: StudyPlan, directory: Path, launch: LaunchOptions, outputs: Outputs) -> None:
    mirror = Mirror.prepared(study, directory, launch, replace(outputs, no_report=True))
    with study_lock(directory):
        write_plan(study, plan, directory)
        failures, stopped = run_all(plan.runs, directory, mirror, launch)
        if stopped:
            click.echo("stopped; rerun the same command to resume", err=True)
            sys.exit(130)
        mirror.send_all(plan.runs)
    if failures:
        for run, reason in failures.items():
            click.echo(f"{directory / run} failed: {reason}", err=True)
        click.echo(
            f"{len(failures)} of {len(plan.runs)} runs of {study.name} failed, so nothing that starts from "
            "them was started; rerun the same command to try again",
            err=True,
        )
        sys.exit(1)
