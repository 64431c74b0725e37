"""`flowrace probe --control`: regression of state and action on the layers of a run, or of a study's runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from harness.files.terminal import show
from harness.probing.control_table import FILE, ControlSettings, measure_study, measurements
from harness.records.checkpoint_files import checkpoints
from harness.train.trained_run import checkpoint_of_run, spec_of_run

BASELINES = ("pixels", "untrained")


def of_run(
    path: Path,
    step: int | None,
    every: bool,
    settings: ControlSettings,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure one checkpoint of a run, or every one, and print the table; nothing is written."""
    spec, newest = spec_of_run(path, overrides), checkpoint_of_run(path, step)
    files = checkpoints(path / "checkpoints") if every else [newest]
    *_, entry = measurements(spec, files, settings)
    if as_json:
        click.echo(json.dumps({"run": path.name, "time": settings.time, **entry}))
        return
    show(_table({path.name: entry}))
    click.echo(_caption(settings, entry["videos"]))


def of_study(
    path: Path, every: bool, settings: ControlSettings, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Add the missing entries to a study's table and print it."""
    table = measure_study(path, settings, overrides, every=every)
    if as_json:
        click.echo(json.dumps(table))
        return
    show(_table(table["runs"]))
    for reason, runs in Counter(table["left_out"].values()).items():
        click.echo(f"{runs} left out: {reason}")
    click.echo(_caption(settings, max(entry["videos"] for entry in table["runs"].values())))
    click.echo(path / FILE)


def _table(runs: Mapping[str, Any]) -> Table:
    table = Table("run", "method", "seed", "step", "", "state", "action", box=None, padding=(0, 1))
    for run, entry in runs.items():
        about = escape(run), entry["method"], str(entry["seed"])
        for step, name, row in _rows(entry):
            table.add_row(*about, step, name, _cell(row["state"]), _cell(row["action"]))
    return table


def _rows(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    yield from (("", name, entry[name]) for name in BASELINES)
    for step, layers in entry["steps"].items():
        yield from ((step, name, row) for name, row in layers.items())


def _cell(value: Mapping[str, Any]) -> str:
    return escape("{mean:.3f} [{low:.3f}, {high:.3f}]".format(**value))


def _caption(settings: ControlSettings, videos: int) -> str:
    return (
        f"R2 of a ridge regression to position (state) and displacement (action) on held-out videos; "
        f"time {settings.time:g}, {videos} videos, a quarter of them held out"
    )
