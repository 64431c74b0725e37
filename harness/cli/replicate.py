"""`flowrace replicate`: repeated evaluations around the crossing of a target."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from harness.config.options import JSON_OPTION
from harness.errors import UserError, unknown
from harness.records.evaluations import recorded_name
from harness.records.measured import metric_names
from harness.records.record import Record, find_records
from harness.records.run_targets import targets_of_run
from harness.records.targets import parse_targets
from harness.train.later_evaluations import MissingWeights
from harness.train.replicates import Wanted, bracket_steps, replicate_run


@click.command(epilog="Example: flowrace replicate runs/digits --replicates 3")
@click.argument(
    "directories",
    metavar="DIR...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
)
@click.option("--metric", help="Metric name as recorded, for example fd:local. Default: the study's.")
@click.option(
    "--target",
    metavar="RULE",
    help="Value to reach: 8.0, a list 8,10, baseline@STEP, or 90% of the way to the baseline's final value. "
    "Default: the study's.",
)
@click.option(
    "--replicates",
    type=click.IntRange(2),
    default=3,
    show_default=True,
    help="Number of evaluations of each step.",
)
@JSON_OPTION
def replicate(
    directories: tuple[Path, ...], metric: str | None, target: str | None, replicates: int, as_json: bool
) -> None:
    """Evaluate again, with replicates, the two steps around each run's crossing of the target.

    Reports and audits then use the means. The weights of those steps must exist, which
    train.keep_checkpoints = "evaluations" keeps. Rerun to resume.
    """
    measured, missing = [], []
    records = find_records(*directories)
    if not records:
        raise UserError(f"no run directory in {', '.join(map(str, directories))}")
    rules = () if target is None else parse_targets(target)
    asked = [targets_of_run(record, records, metric, rules) for record in records]
    _check_measured(records, {name for name, _ in asked})
    for record, (name, values) in zip(records, asked, strict=True):
        wanted = [Wanted(name, value) for value in values]
        steps = sorted({step for crossing in wanted for step in bracket_steps(record, crossing)})
        try:
            for step, found in replicate_run(record, steps, replicates):
                measured.append({"run": record.id, "step": step, **found})
                if not as_json:
                    click.echo(_line(record.id, step, found))
        except MissingWeights as error:
            missing.append(str(error))
            click.echo(f"note: {error}", err=True)
    if as_json:
        click.echo(json.dumps(measured, indent=1))
    if missing and not measured:
        raise UserError(f"nothing could be evaluated again: {missing[0]}")


def _check_measured(records: Sequence[Record], metrics: Iterable[str]) -> None:
    """Raise `UserError` if no run has been evaluated, or none by one of the metrics."""
    known = {name for record in records for name in metric_names(record)}
    if not known:
        raise UserError("no run has been evaluated yet, so there is nothing to evaluate again")
    for metric in metrics:
        if recorded_name(metric) not in known:
            raise unknown("metric", metric, known)


def _line(run: str, step: int, found: dict[str, Any]) -> str:
    values = (
        f"{name} {row['mean']:.4g} [{row['low']:.4g}, {row['high']:.4g}]"
        for name, row in found["metrics"].items()
    )
    return f"{run} step {step}: {', '.join(values)}"
