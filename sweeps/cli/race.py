"""The command `flowrace race`, which runs a study until its claims are decided."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from harness.config.options import JSON_OPTION, examples, set_option, track_options
from harness.errors import UserError
from sweeps.cli.first_stage import run_first_stage
from sweeps.cli.study_run import Mirror, Outputs, run_all, write_study_report
from sweeps.cli.tables import (
    describe_plan,
    describe_results,
    make_table,
    print_plan,
    print_results,
    print_table,
)
from sweeps.launch.options import LaunchOptions, launch_options
from sweeps.plan.budget import check_budget
from sweeps.plan.missing_weights import check_weights
from sweeps.plan.plan import PlannedRun, StudyPlan, make_plan
from sweeps.plan.study_folder import study_lock


@click.command(
    epilog=examples(
        "flowrace race claim.toml --dry-run",
        "flowrace race claim.toml --out runs/my-race",
        then="Rerun the same command to resume; looks that were taken are kept.",
    )
)
@click.argument("file", metavar="CLAIM.toml", type=click.Path(path_type=Path, dir_okay=False))
@set_option(help="Set a field of every run's spec; may be repeated.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the study (default: runs/<name of the study>).",
)
@launch_options
@click.option(
    "--dry-run", is_flag=True, help="Print the runs and the expected number of pairs; start nothing."
)
@click.option(
    "--spread",
    type=click.FloatRange(0, min_open=True),
    default=0.05,
    show_default=True,
    help="Standard deviation of the log ratios of pairs, for --dry-run; flowrace audit power measures it.",
)
@JSON_OPTION
@track_options
@click.option("--no-report", is_flag=True, help="Do not write report.html at the end.")
def race(
    file: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    launch: LaunchOptions,
    dry_run: bool,
    spread: float,
    as_json: bool,
    track: str | None,
    no_track: bool,
    no_report: bool,
) -> None:
    """Run a study pair by pair until its registered claims are decided.

    CLAIM.toml holds claims with [claim.sequential] and their study. The claims are registered, and pairs of
    runs are trained in the registered order. Nothing more is started for claims that a look finds supported,
    refuted or futile. Exit code 1 if a run failed, 130 if interrupted.
    """
    outputs = Outputs(track, no_track, no_report, as_json)
    try:
        _race(file, overrides, out, launch, outputs, spread if dry_run else None)
    except UserError as error:
        # The sentence also goes to standard error, with exit code 2.
        if as_json:
            click.echo(json.dumps({"refused": str(error)}, indent=1))
        raise


def _race(
    file: Path,
    overrides: tuple[str, ...],
    out: Path | None,
    launch: LaunchOptions,
    outputs: Outputs,
    spread: float | None,
) -> None:
    """Run a race; with a spread, print what is expected of it instead."""
    from sweeps.race.race_file import read_race, with_ends

    found = read_race(file, overrides)
    directory = out or Path("runs") / found.study.name
    for line in found.notes:
        click.echo(line, err=True)
    plan = with_ends(found, make_plan(found.study, directory))
    if spread is not None:
        _print_expected(found, plan, directory, spread, outputs.as_json)
        return
    _run(found, plan, directory, launch, outputs)


# Any: `Race`, whose module is imported when the command runs.
def _run(found: Any, plan: StudyPlan, directory: Path, launch: LaunchOptions, outputs: Outputs) -> None:
    from sweeps.plan.early_ends import spared_steps
    from sweeps.race.coordinator import run_race

    check_budget(found.study, plan.runs)
    check_weights(plan.runs, directory)
    run_first_stage(found.study, directory, launch, outputs)
    mirror = Mirror.prepared(found.study, directory, launch, outputs)

    def train(runs: Sequence[PlannedRun]) -> tuple[Mapping[str, str], bool]:
        return run_all(runs, directory, mirror, launch)

    with study_lock(directory):
        course = run_race(found, plan, directory, train, lambda line: click.echo(line, err=outputs.as_json))
        if not course.stopped:
            mirror.send_all(course.runs)
        results = describe_results(found.study, course.runs, directory, course.failures)
        about = {
            "looks": list(course.looks),
            "registered": dict(course.registered),
            "spared_runs": len(plan.runs) - len(course.runs),
            "spared_steps": spared_steps(course.runs, directory),
            "stopped": course.stopped,
            "lost": course.lost,
            "report": None,
        }
        if course.stopped or course.lost:
            _print_unfinished(results | about, outputs.as_json)
        if not outputs.as_json:
            print_results(results)
            click.echo(f"{len(course.runs)} of {len(plan.runs)} planned runs were needed")
            if about["spared_steps"]:
                click.echo(f"early ends of runs saved {about['spared_steps']:.0%} of their steps")
        if not outputs.no_report:
            about["report"] = write_study_report(directory, quiet=outputs.as_json, claims=[found.file])
        if outputs.as_json:
            click.echo(json.dumps(results | about, indent=1))
    sys.exit(1 if course.failures else 0)


def _print_unfinished(results: Mapping[str, Any], as_json: bool) -> NoReturn:
    """Print the results of a race that a signal stopped, or that lost a run; exit with 130 or 1."""
    if as_json:
        click.echo(json.dumps(results, indent=1))
    if results["stopped"]:
        click.echo("stopped; rerun the same command to resume", err=True)
        sys.exit(130)
    if not as_json:
        print_results(results)
    click.echo("no look was taken: a run has no end; rerun the same command to continue it", err=True)
    sys.exit(1)


def _print_expected(found: Any, plan: StudyPlan, directory: Path, spread: float, as_json: bool) -> None:
    """Print the plan, and what to expect under the claimed speed-up, half of it, and none."""
    from sweeps.plan.early_ends import plan_early_ends
    from sweeps.plan.run_cost import run_cost
    from sweeps.race.expected import expected_ends

    described = describe_plan(found.study, plan.runs, directory, plan.excluded)
    flops = {run.spec.method.name: run_cost(run.spec).total for run in plan.runs}
    ends = expected_ends(found, spread, flops)
    until = plan_early_ends(plan.runs)
    if as_json:
        about: dict[str, Any] = {"expected": [one._asdict() for one in ends], "spread": spread}
        about["until"] = None if until is None else until.row()
        click.echo(json.dumps(described | about, indent=1))
        return
    print_plan(described)
    table = make_table(f"expected, if log ratios of pairs spread by {100 * spread:g} %")
    for column in ("claim", "true speed-up", "pairs", "decided", "FLOPs"):
        table.add_column(column, justify="left" if column in ("claim", "true speed-up") else "right")
    for one in ends:
        table.add_row(
            one.claim,
            f"{one.factor:.3g}x ({one.assumed})",
            f"{one.pairs:.1f} of {found.rule.max_pairs}",
            f"{one.decided:.0%}",
            "" if one.flops is None else f"{one.flops:.2e}",
        )
    print_table(table)
    for line in () if until is None else until.lines():
        click.echo(line)
    if any(one.assumed == "claimed" and one.decided < 0.5 for one in ends):
        click.echo(
            "a claim that is exactly true is at its own edge, where it is seldom decided; state a tolerance, "
            "or a factor below what you expect"
        )
