"""The command `flowrace figures`: the pictures of a report as files for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from reports.pages.svg import Picture
    from reports.race import Race

WIDTHS = {"paper": 3.3, "page": 7.6}
"""Inches: a column of a paper, a whole page."""
FORMATS = ("pdf", "svg")


@click.command(epilog="Example: flowrace figures runs/digits --style paper --format pdf,svg -o figures")
@click.argument("directories", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
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
@click.option(
    "--metric", help="As in the record, fd:local say. Default: the study's, else the first evaluated."
)
@click.option(
    "--target", type=float, help="The value to reach. Default: the study's, else what every run reaches."
)
@click.option("--baseline", help="The arm to compare with. Default: the study's, else flow.")
def figures(
    directories: tuple[Path, ...],
    output: Path,
    look: str,
    formats: str,
    metric: str | None,
    target: float | None,
    baseline: str | None,
) -> None:
    """Convergence, speed-ups, speed-up by target and cost of a step as figures for a paper; the same bytes each time."""
    from harness.errors import unknown
    from reports.race import read_race

    kinds = [kind.strip() for kind in formats.split(",")]
    for kind in kinds:
        if kind not in FORMATS:
            raise unknown("format", kind, FORMATS)
    race = read_race(list(directories), metric=metric, target=target, baseline=baseline)
    for picture in pictures(race, WIDTHS[look]):
        for kind in kinds:
            click.echo(save(picture, output, kind))


def pictures(race: Race, width: float) -> list[Picture]:
    """Every picture that this race has, on every axis, `width` inches wide."""
    from reports.pages import charts
    from reports.pages import figures as drawn

    curves = any(run.curve is not None for run in race.runs)
    found = [drawn.convergence(race, axis, width) for axis in race.axes if curves]
    if race.speedups and len(charts.targets(race)):
        found += [drawn.targets(race, axis, width) for axis in race.axes]
    found += [drawn.forest(race, width)] if race.speedups else []
    return found + ([drawn.cost(race, width)] if any(run.record.of("train") for run in race.runs) else [])


def save(picture: Picture, folder: Path, kind: str) -> Path:
    """Write a picture, dateless and with its text as text; raises `UserError` where it cannot be written."""
    import io

    import matplotlib as mpl

    from harness.errors import UserError
    from harness.record import write_atomic
    from reports.pages.svg import style

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
