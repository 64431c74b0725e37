"""One offline HTML file, and three CSV files beside it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from harness.errors import UserError
from harness.files.files import write_atomic
from reports.audit.audit import Audit
from reports.audit.judge_files import judged
from reports.figures import chart_data as charts
from reports.figures import race_figures as figures
from reports.figures import svg
from reports.pages import (
    control as control_table,
)
from reports.pages import (
    final_values as finals_table,
)
from reports.pages import (
    scaling as scaling_plot,
)
from reports.pages import (
    sections,
    tables,
)
from reports.pages.ablation import matrix
from reports.pages.audits import audits
from reports.pages.forest import forest
from reports.pages.performance_profile import performance
from reports.pages.provenance import provenance
from reports.pages.published import Printed, find_curves
from reports.pages.published import published as published_curves
from reports.pages.section import render as render_template
from reports.pages.section import source
from reports.race.race import Race, read_race
from reports.race.verdict import caveats, goal, sentence

MARK = '<meta name="generator" content="flowrace'
"""By this a report knows a report of its own, and replaces no other file."""
LIBRARY = "uplot-1.6.32.min"
"""The chart library, in `vendor/` with its licence."""


@dataclass(frozen=True)
class Report:
    """What was written, and what it says."""

    html: Path
    csv: Path
    runs_csv: Path
    finals_csv: Path
    race: Race
    verdict: Mapping[str, str]
    """One or two sentences for each axis, steps first."""
    caveats: tuple[str, ...]
    claims: tuple[Audit, ...] = ()

    @property
    def headline(self) -> str:
        return next(iter(self.verdict.values()))


def write_report(
    directories: Sequence[Path],
    output: Path,
    *,
    metric: str | None = None,
    target: float | None = None,
    baseline: str | None = None,
    published: Sequence[str] = (),
    claims: Sequence[Path] = (),
) -> Report:
    """Report on the runs in these folders: `output` (.html) and, beside it, its numbers as CSV: of arms, of runs, and of every
    metric at the end.

    What is not given comes from a folder's `study.toml`. `published` names curves of papers to show beside the measured ones
    (`METHOD[:SIZE[:METRIC]]`, published.py), `claims` the files of claims to judge first. The same records give the same bytes.
    Raises `UserError` for a mistake of the user's, before anything is written.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"output {output}: a report is an .html file, as report.html")
    beside = [output.with_name(f"{output.stem}{kind}.csv") for kind in ("", "-runs", "-finals")]
    files = (output, *beside)
    marks = (MARK, *(",".join(own) for own in (tables.COLUMNS, tables.RUN_COLUMNS, finals_table.COLUMNS)))
    for file, mark in zip(files, marks, strict=True):
        _check_free(file, mark)
    printed = find_curves(published)
    race = read_race(directories, metric=metric, target=target, baseline=baseline)
    found = judged(claims, [str(directory) for directory in directories])
    verdict = {axis: sentence(race, axis) for axis in race.axes}
    report = Report(*files, race, verdict, tuple(caveats(race)), tuple(found))
    given = {"--metric": metric, "--target": target, "--baseline": baseline}
    given |= {"--published": published, "--claim": claims}
    page = body(race, _command(directories, output, given), printed, found)
    contents = {
        report.csv: tables.to_csv(tables.COLUMNS, tables.rows(race)),
        report.runs_csv: tables.to_csv(tables.RUN_COLUMNS, tables.run_rows(race)),
        report.finals_csv: tables.to_csv(finals_table.COLUMNS, finals_table.rows(race)),
        report.html: render(report, page),
    }
    for file, content in contents.items():
        _write(file, content)
    return report


def body(
    race: Race, command: str, printed: Sequence[Printed] = (), found: Sequence[Audit] = ()
) -> list[Markup]:
    """The sections of the page in their order, without those that have nothing to show for this race."""
    made = [
        audits(race, found),
        sections.verdict(race),
        sections.convergence(race),
        published_curves(race, printed),
        sections.targets(race),
        sections.speed_up(race),
        forest(race),
        performance(race),
        sections.times(race),
        finals_table.section(race),
        sections.cost(race),
        matrix(race),
        scaling_plot.encoders(race),
        scaling_plot.sizes(race),
        control_table.layers(race),
        sections.samples(race),
        sections.runs(race),
        provenance(race, command),
    ]
    return [section for section in made if section is not None]


def render(report: Report, page: Sequence[Markup]) -> str:
    """The page as text: the frame around its sections."""
    race = report.race
    return render_template(
        "report",
        race,
        report=report,
        goal=None if race.target is None else goal(race),
        sections=page,
        style=source("report.css"),
        version=version("flowrace"),
        colours=list(zip(svg.ARMS, svg.ARMS_DARK, strict=True)),
        scripts=[Markup(_vendored(f"{LIBRARY}.js")), source("report.js")],
        chart_style=Markup(_vendored(f"{LIBRARY}.css")),
        data=Markup(charts.as_json(_data(race))),
    )


def _data(race: Race) -> dict[str, Any]:
    """What the script draws, with the looks that it shares with the printed figures."""
    looks = {"colours": len(svg.ARMS), "dashes": [[2 * d for d in dashes] for dashes in svg.DASHES]}
    return charts.payload(race, figures.AXIS_NAMES) | looks | {"arms": [arm.label for arm in race.arms]}


def _vendored(name: str) -> str:
    return (resources.files("reports") / "vendor" / name).read_text(encoding="utf-8")


def _command(directories: Sequence[Path], output: Path, given: Mapping[str, Any]) -> str:
    several = {name: value if isinstance(value, list | tuple) else [value] for name, value in given.items()}
    options = [
        text
        for name, own in several.items()
        for value in own
        if value is not None
        for text in (name, str(value))
    ]
    return shlex.join(["flowrace", "report", *map(str, directories), "-o", str(output), *options])


def _check_free(file: Path, mark: str) -> None:
    """Only a report's own files are replaced."""
    if file.is_dir():
        raise UserError(f"output {file} is a folder; give a file, as {file / 'report.html'}")
    if not file.exists():
        return
    try:
        with open(file, encoding="utf-8", errors="replace") as text:
            head = text.read(4096)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if mark not in head:
        raise UserError(f"{file} is there already and is no report of flowrace's; give another output")


def _write(file: Path, content: str) -> None:
    try:
        write_atomic(file, content.encode())
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error
