"""The command `flowrace figures`, which writes the figures of a report as files for a paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.config.options import JSON_OPTION, examples
from reports.cli.options import race_options

if TYPE_CHECKING:
    from reports.analysis.report import RaceReport
    from reports.figures.svg import Picture
    from reports.pages.published import PublishedRequest

WIDTHS = {"paper": 3.3, "page": 7.6}
"""Widths in inches: a column of a paper, and the full width of a page."""
FORMATS = ("pdf", "svg")


@click.command(epilog=examples("flowrace figures runs/digits --style paper --format pdf,svg -o figures"))
@race_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("figures"),
    show_default=True,
    help="Folder to write to.",
)
@click.option(
    "--style",
    "look",
    type=click.Choice(list(WIDTHS)),
    default="paper",
    show_default=True,
    help="Width of a column or of a page.",
)
@click.option(
    "--format",
    "formats",
    default="pdf",
    show_default=True,
    help="File formats: pdf, svg or both, separated by a comma.",
)
@JSON_OPTION
def figures(
    directories: tuple[Path, ...],
    output: Path,
    look: str,
    formats: str,
    metric: str | None,
    target: float | None,
    baseline: str | None,
    published: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the figures of a report for a paper: convergence, speed-ups (by cost, target and cell),
    profiles, cost per step.

    The same records give the same bytes.
    """
    import json

    from harness.errors import unknown
    from harness.files.progress import tracked
    from reports.analysis.report import read_report
    from reports.pages.published import find_curves

    kinds = [kind.strip() for kind in formats.split(",")]
    for kind in kinds:
        if kind not in FORMATS:
            raise unknown("format", kind, FORMATS)
    printed = find_curves(published)
    report = read_report(directories, metric=metric, target=target, baseline=baseline)
    race = report.race
    files = []
    for draw in tracked(pictures(report, printed), "figures"):
        picture = draw(WIDTHS[look])
        files += [save(picture, output, kind) for kind in kinds]
    if as_json:
        shared = {"name": race.name, "metric": race.metric, "target": race.target, "baseline": race.baseline}
        click.echo(json.dumps(shared | {"figures": [str(file) for file in files]}, indent=1))
        return
    for file in files:
        click.echo(file)


def pictures(
    report: RaceReport, printed: Sequence[PublishedRequest] = ()
) -> list[Callable[[float], Picture]]:
    """Return a function for each picture of this race, on every axis, which draws it at a width in inches."""
    from reports.figures import race_figures
    from reports.pages import forest, performance_profile, published

    race, found = report.race, []
    if any(run.evaluated for run in race.runs):
        found += [partial(race_figures.draw_convergence, race, axis) for axis in race.axes]
    if race.speedups and report.by_target.targets:
        found += [partial(race_figures.draw_targets, race, axis, report.by_target) for axis in race.axes]
    if race.speedups:
        found.append(partial(race_figures.draw_forest, race))
    if len(report.workloads) > 1:
        found += [partial(forest.draw_workloads, report, axis) for axis in forest.compared_axes(report)]
    profiles = performance_profile.shown_profiles(report).values()
    found += [partial(performance_profile.draw_profile, profile) for profile in profiles]
    if any(run.record.of("train") for run in race.runs):
        found.append(partial(race_figures.draw_cost, race))
    groups = enumerate(published.by_metric(printed).items())
    return found + [partial(published.draw_published, metric, own, n) for n, (metric, own) in groups]


def save(picture: Picture, folder: Path, kind: str) -> Path:
    """Write a picture without a date and with its text as text; raises `UserError` if that fails."""
    import io

    import matplotlib as mpl

    from harness.errors import UserError
    from harness.files.files import write_atomic
    from reports.figures.svg import style

    content, undated = io.BytesIO(), {"CreationDate": None} if kind == "pdf" else {"Date": None}
    with style(), mpl.rc_context({"pdf.fonttype": 42}):
        picture.figure.savefig(content, format=kind, metadata=undated)
    file = folder / f"{picture.name}.{kind}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error
    return file
