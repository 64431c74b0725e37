"""The command `flowrace figures`, which writes the figures of a report as files for a paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.config.options import JSON_OPTION, examples, warn_of
from reports.cli.options import log_options, parse_labels, race_options

if TYPE_CHECKING:
    from reports.analysis.report import RaceReport
    from reports.figures.svg import Look, Picture
    from reports.pages.published import PublishedRequest

STYLES = {
    "paper": ((3.3, 7.6), "sans-serif", 8.5),
    "page": ((7.6, 7.6), "sans-serif", 8.5),
    "neurips": ((5.5, 5.5), "serif", 9.0),
    "icml": ((3.25, 6.75), "serif", 8.0),
    "cvpr": ((3.25, 6.875), "serif", 8.0),
}
"""By style: widths of a column and of the text in inches, family and size of the font.

NeurIPS has one column. The widths are those of the conferences' LaTeX styles."""
WIDTHS = ("column", "text")
SERIF = ("STIXGeneral", "Times New Roman", "Liberation Serif", "Nimbus Roman", "Times")
SANS = ("DejaVu Sans",)
"""Fonts by family. STIXGeneral has Times' metrics and comes with matplotlib, so that files are the same
everywhere."""
SIZES = (4.0, 24.0)
FORMATS = ("pdf", "svg")


@click.command(
    epilog=examples(
        "flowrace figures runs/digits --style icml --width text --labels repa=REPA --format pdf,svg"
    )
)
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
    type=click.Choice(list(STYLES)),
    default="paper",
    show_default=True,
    help="Widths and font: neurips (5.5 in), icml (3.25 or 6.75), cvpr (3.25 or 6.875), paper (3.3 or 7.6), "
    "page (7.6).",
)
@click.option(
    "--width",
    type=click.Choice(WIDTHS),
    default="column",
    show_default=True,
    help="Width of one column or of the full text.",
)
@click.option("--font", help="Name of an installed font, serif or sans-serif. Default: the style's.")
@click.option(
    "--font-size", type=click.FloatRange(*SIZES), metavar="POINTS", help="Font size. Default: the style's."
)
@click.option(
    "--format",
    "formats",
    default="pdf",
    show_default=True,
    help="File formats: pdf, svg or both, separated by a comma.",
)
@log_options
@JSON_OPTION
def figures(
    directories: tuple[str, ...],
    output: Path,
    look: str,
    width: str,
    font: str | None,
    font_size: float | None,
    formats: str,
    label_words: tuple[str, ...],
    published: tuple[str, ...],
    map_file: Path | None,
    patterns: tuple[str, ...],
    as_json: bool,
    **asked: Any,
) -> None:
    """Write the figures of a report for a paper: convergence, speed-ups (by cost, target and cell),
    profiles, scaling, cost per step, gradients.

    Each has a legend, and its text stays text. The same records give the same bytes.
    """
    import json

    from harness.errors import unknown
    from harness.files.progress import tracked
    from reports.analysis.report import read_report
    from reports.figures.svg import with_look
    from reports.logs.log_map import read_map
    from reports.pages.published import find_curves

    kinds = [kind.strip() for kind in formats.split(",")]
    for kind in kinds:
        if kind not in FORMATS:
            raise unknown("format", kind, FORMATS)
    printed = find_curves(published)
    names = parse_labels(label_words)
    rules = read_map(map_file, patterns)
    report = read_report(directories, labels=names, rules=rules, **asked)
    warn_of(report.race.misfits)
    race, inches = report.race, STYLES[look][0][WIDTHS.index(width)]
    files = []
    with with_look(_look(look, font, font_size)):
        for draw in tracked(pictures(report, printed), "figures"):
            picture = draw(inches)
            files += [save(picture, output, kind) for kind in kinds]
    if as_json:
        shared = {"name": race.name, "metric": race.metric, "target": race.target, "baseline": race.baseline}
        click.echo(json.dumps(shared | {"figures": [str(file) for file in files]}, indent=1))
        return
    for file in files:
        click.echo(file)


def _look(name: str, font: str | None, size: float | None) -> Look:
    """Return the look of a style with the user's font and size; raises `UserError` for an unknown font."""
    from matplotlib import font_manager

    from harness.errors import unknown
    from reports.figures.svg import Look

    _, family, usual = STYLES[name]
    if font in ("serif", "sans-serif"):
        family, font = font, None
    fonts = SERIF if family == "serif" else SANS
    if font is not None:
        names = {entry.name for entry in font_manager.fontManager.ttflist}
        if font not in names:
            raise unknown("font", font, sorted(names))
        fonts = (font, *fonts)
    return Look(family, fonts, usual if size is None else size, legend=True)


def pictures(
    report: RaceReport, printed: Sequence[PublishedRequest] = ()
) -> list[Callable[[float], Picture]]:
    """Return a function for each picture of this race, on every axis, which draws it at a width in inches."""
    from reports.figures import gradient_figures, race_figures
    from reports.pages import forest, performance_profile, published, scaling

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
    scalings = {"encoders": report.encoder_scaling, "sizes": report.model_scaling}
    found += [
        partial(scaling.draw_scaling, race, one, name) for name, one in scalings.items() if one is not None
    ]
    if any(run.record.last_trained for run in race.runs):
        found.append(partial(race_figures.draw_cost, race))
    if report.gradients is not None:
        found.append(partial(gradient_figures.draw_gradients, race, report.gradients))
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
