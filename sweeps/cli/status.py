"""The commands about existing studies: `status`, `retry` and `study diff`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.config.options import JSON_OPTION, warn_of
from sweeps.launch.options import LaunchOptions, launch_options
from sweeps.plan.status import INCOMPLETE, difference, read_status

if TYPE_CHECKING:
    from sweeps.plan.difference import Change

FOLDER = click.argument("directory", type=click.Path(path_type=Path, file_okay=False))


@click.command(epilog="Example: flowrace status runs/digits")
@FOLDER
@JSON_OPTION
def status(directory: Path, as_json: bool) -> None:
    """Print the status of every run of a study: done, running, stopped, failed, missing or excluded, with the
    reason."""
    found = read_status(directory)
    warn_of(f"{run['label']}: {'; '.join(run['misfits'])}" for run in found["runs"] if "misfits" in run)
    if as_json:
        looks = _looks(directory)
        click.echo(json.dumps(found | ({"looks": looks} if looks else {}), indent=1))
        return
    _print_status(found)
    _print_looks(directory)


@click.command(epilog="Example: flowrace retry runs/digits")
@FOLDER
@launch_options
def retry(directory: Path, launch: LaunchOptions) -> None:
    """Resume failed and stopped runs from their last checkpoints; missing runs are not started.

    Exit code 1 if a run fails again.
    """
    from sweeps.cli.sweep import rerun

    incomplete = {run["id"] for run in read_status(directory)["runs"] if run["status"] in INCOMPLETE}
    if not incomplete:
        click.echo(f"no failed or stopped run in {directory}")
        return
    rerun(directory, incomplete, launch)


@click.group(epilog="Example: flowrace study diff digits mine.toml")
def study() -> None:
    """Compare studies."""


@study.command(epilog="Example: flowrace study diff digits mine.toml")
@click.argument("a", metavar="STUDY|FILE.toml|DIR")
@click.argument("b", metavar="STUDY|FILE.toml|DIR")
@JSON_OPTION
def diff(a: str, b: str, as_json: bool) -> None:
    """Print the runs that two studies share, those that only one has, and the fields in which they differ.

    Runs of the two studies that differ in few fields are compared in pairs. Target, baseline, labels and
    budget of the studies are compared too.
    """
    from sweeps.plan.difference import field_changes, read_side, setting_changes

    first, second = read_side(a), read_side(b)
    found = difference([vars(run) for run in first.runs], [vars(run) for run in second.runs])
    fields, settings = field_changes(first.runs, second.runs), setting_changes(first, second)
    if as_json:
        changes = {"fields": [asdict(change) for change in fields]}
        changes["settings"] = [{"field": one.field, "a": one.a, "b": one.b} for one in settings]
        click.echo(json.dumps(found | changes, indent=1))
        return
    for key, text in (("both", "in both"), ("only_a", f"only in {a}"), ("only_b", f"only in {b}")):
        click.echo(f"{text}: {len(found[key])}")
        for name in found[key] if key != "both" else ():
            click.echo(f"  {name}")
    _print_changes("fields of these runs that differ", fields)
    _print_changes("settings of the studies that differ", settings)


def _print_changes(title: str, changes: Sequence[Change]) -> None:
    from sweeps.plan.study import format_value

    if changes:
        click.echo(f"{title}:")
    for change in changes:
        a, b = ("not set" if value is None else format_value(value) for value in (change.a, change.b))
        count = f" in {len(change.runs)} run{'s' * (len(change.runs) != 1)}" if change.runs else ""
        click.echo(f"  {change.field}: {a} -> {b}{count}")


def _looks(directory: Path) -> list[dict[str, Any]]:
    """Return the looks of a race; empty for a study that is not one."""
    from harness.records.study_folder import StudyFolder

    if not StudyFolder(directory).looks_file.exists():
        return []
    from sweeps.race.coordinator import read_looks

    return read_looks(directory)


def _print_looks(directory: Path) -> None:
    if looks := _looks(directory):
        from sweeps.race.picture import looks_picture

        for line in looks_picture(looks):
            click.echo(line)


def _print_status(found: dict[str, Any]) -> None:
    from rich.text import Text

    from sweeps.cli.tables import make_table, print_table

    table = make_table(f"study {found['study']}")
    for column in ("run", "", "status", "step"):
        table.add_column(column, justify="right" if column == "step" else "left", no_wrap=True)
    for run in found["runs"]:
        table.add_row(*map(Text, (run["id"] or "", run["label"], run["status"], str(run["step"]))))
    print_table(table)
    for run in found["runs"]:
        if "later_evaluations" in run:
            click.echo(f"{run['label']}: {run['later_evaluations']} later evaluations")
        if "ended" in run:
            click.echo(f"{run['label']} {run['ended']}")
        if "reason" in run:
            click.echo(f"{run['label']} {run['status']}: {run['reason']}")
    click.echo(", ".join(f"{count} {name}" for name, count in found["counts"].items()) or "no runs")
