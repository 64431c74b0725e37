"""The command `flowrace figures`: the pictures of a report as files for a paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reports.cli.options import race_options

if TYPE_CHECKING:
    from reports.figures.svg import Picture
    from reports.pages.published import Printed
    from reports.race.race import Race

WIDTHS = {"paper": 3.3, "page": 7.6}
"""Inches: a column of a paper, a whole page."""
FORMATS = ("pdf", "svg")


@click.command(epilog="Example: flowrace figures runs/digits --style paper --format pdf,svg -o figures")
@race_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("figures"),
    show_default=True,
    help="The folder to write into.",
)
@click.option(
    "--style",
    "look",
    type=click.Choice(list(WIDTHS)),
    default="paper",
    show_default=True,
    help="Width: a column or a page.",
)
@click.option(
    "--format", "formats", default="pdf", show_default=True, help="pdf, svg or both, with a comma between."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
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
    """Every figure of a report for a paper: convergence, speed-ups (by cost, target and cell), profiles, cost of a step.

    The same records give the same bytes.
    """
    import json

    from harness.errors import unknown
    from reports.pages.published import find_curves
    from reports.race.race import read_race

    kinds = [kind.strip() for kind in formats.split(",")]
    for kind in kinds:
        if kind not in FORMATS:
            raise unknown("format", kind, FORMATS)
    printed = find_curves(published)
    race = read_race(list(directories), metric=metric, target=target, baseline=baseline)
    files = []
    for draw in _shown(pictures(race, printed)):
        picture = draw(WIDTHS[look])
        files += [save(picture, output, kind) for kind in kinds]
    if as_json:
        shared = {"name": race.name, "metric": race.metric, "target": race.target, "baseline": race.baseline}
        click.echo(json.dumps(shared | {"figures": [str(file) for file in files]}, indent=1))
        return
    for file in files:
        click.echo(file)


def pictures(race: Race, printed: Sequence[Printed] = ()) -> list[Callable[[float], Picture]]:
    """What draws each picture that this race has, on every axis, given a width in inches."""
    from reports.figures import chart_data as charts
    from reports.figures import race_figures as drawn
    from reports.pages import forest
    from reports.pages import performance_profile as profile_plot
    from reports.pages import published as papers
    from reports.race.cells import cells_of

    curves = any(run.curve is not None for run in race.runs)
    found = [partial(drawn.convergence, race, axis) for axis in race.axes if curves]
    at = charts.targets(race)
    if race.speedups and len(at):
        gains = charts.gains_by_target(race, race.axes, at)
        found += [partial(drawn.targets, race, axis, gains[axis]) for axis in race.axes]
    found += [partial(drawn.forest, race)] if race.speedups else []
    cells = cells_of(race)
    if len(cells) > 1:
        found += [partial(forest.picture, cells, axis) for axis in forest.compared(race, cells)]
    found += [partial(profile_plot.picture, one) for one in profile_plot.profiles(race).values()]
    found += [partial(drawn.cost, race)] if any(run.record.of("train") for run in race.runs) else []
    groups = papers.by_metric(printed).items()
    return found + [partial(papers.picture, metric, own, n) for n, (metric, own) in enumerate(groups)]


def _shown(draws: Sequence[Callable[[float], Picture]]) -> Iterable[Callable[[float], Picture]]:
    """With a bar in a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(draws, "figures", console=console, disable=not console.is_terminal, transient=True)


def save(picture: Picture, folder: Path, kind: str) -> Path:
    """Write a picture, dateless and with its text as text; raises `UserError` where it cannot be written."""
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
