"""The report as a single HTML file that works offline, with three CSV files next to it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack

from markupsafe import Markup

from harness.errors import UserError
from harness.files.files import write_atomic
from harness.records.mlflow_store import shown
from reports.analysis.report import RaceReport, read_report
from reports.analysis.rows import ARM_COLUMNS, FINAL_COLUMNS, RUN_COLUMNS, to_csv
from reports.figures import chart_data, race_figures, svg
from reports.logs.log_map import read_map
from reports.pages import sections
from reports.pages.ablation import ablation_section
from reports.pages.attributes import attribute_section
from reports.pages.audits import claims_section
from reports.pages.conditions import conditions_section
from reports.pages.control import control_section
from reports.pages.final_values import final_value_section
from reports.pages.forest import workload_section
from reports.pages.gradients import gradient_section
from reports.pages.performance_profile import profile_section
from reports.pages.provenance import provenance_section
from reports.pages.published import PublishedRequest, find_curves, published_section
from reports.pages.scaling import encoder_section, size_section
from reports.pages.section import render_template, source
from reports.race.race import RaceArguments

MARK = '<meta name="generator" content="flowrace'
"""Identifies a page that flowrace wrote: only such a file is replaced."""
LIBRARY = "uplot-1.6.32.min"
"""The chart library, in `vendor/` with its licence."""
CSV_FILES = {"": ARM_COLUMNS, "-runs": RUN_COLUMNS, "-finals": FINAL_COLUMNS}
"""The columns of each CSV file, by the ending of its name."""
OPTIONS = ("metric", "target", "baseline", "across", "protocol")
"""The options of the command that a page repeats."""


@dataclass(frozen=True)
class WrittenReport:
    """The files that were written, and the report that they contain."""

    html: Path
    csv: Path
    runs_csv: Path
    finals_csv: Path
    report: RaceReport

    @property
    def headline(self) -> str:
        return self.report.headline


def write_report(
    directories: Sequence[Path | str],
    output: Path,
    *,
    published: Sequence[str] = (),
    claims: Sequence[Path] = (),
    map_file: Path | None = None,
    patterns: Sequence[str] = (),
    **asked: Unpack[RaceArguments],
) -> WrittenReport:
    """Write a report on runs of folders, logs or MLflow stores: an HTML page, and CSV files of arms,
    runs and final values next to it.

    `metric`, `target`, `baseline`, `labels` and `across` default to the values in a folder's `study.toml`,
    and `protocol` to the conditions of the runs' specs (`read_race`). `published` requests
    curves of papers to show next to the measured ones (`METHOD[:SIZE[:METRIC]]`); `claims` are files of
    claims to audit; `map_file` and `patterns` are the ways to read logs. The
    same records give the same bytes.
    Raises `UserError` before anything is written.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"output {output}: a report is an .html file, for example report.html")
    csv, runs_csv, finals_csv = (output.with_name(f"{output.stem}{ending}.csv") for ending in CSV_FILES)
    _check_free(output, MARK)
    for file, columns in zip((csv, runs_csv, finals_csv), CSV_FILES.values(), strict=True):
        _check_free(file, ",".join(columns))
    printed = find_curves(published)
    given: dict[str, Any] = {f"--{name}": asked.get(name) for name in OPTIONS}
    report = read_report(directories, claims=claims, rules=read_map(map_file, patterns), **asked)
    given |= {"--labels": [f"{name}={shown}" for name, shown in (asked.get("labels") or {}).items()]}
    given |= {"--published": published, "--claim": claims}
    given |= {"--map": map_file, "--pattern": patterns}
    written = WrittenReport(output, csv, runs_csv, finals_csv, report)
    page = render_page(written, body(report, _command(directories, output, given), printed))
    contents = {
        csv: to_csv(ARM_COLUMNS, report.arm_rows),
        runs_csv: to_csv(RUN_COLUMNS, report.run_rows),
        finals_csv: to_csv(FINAL_COLUMNS, report.final_value_rows),
        output: page,
    }
    for file, content in contents.items():
        _write(file, content)
    return written


def body(report: RaceReport, command: str, printed: Sequence[PublishedRequest] = ()) -> list[Markup]:
    """Return the sections of the page in order, without those that have nothing to show for this race."""
    all_sections = [
        claims_section(report),
        sections.verdict_section(report),
        sections.other_target_section(report),
        sections.convergence_section(report),
        published_section(report, printed),
        sections.target_section(report),
        sections.speedup_section(report),
        workload_section(report),
        profile_section(report),
        sections.time_section(report),
        attribute_section(report),
        final_value_section(report),
        conditions_section(report),
        sections.cost_section(report),
        gradient_section(report),
        ablation_section(report),
        encoder_section(report),
        size_section(report),
        control_section(report),
        sections.sample_section(report),
        sections.run_section(report),
        provenance_section(report, command),
    ]
    return [section for section in all_sections if section is not None]


def render_page(written: WrittenReport, page: Sequence[Markup]) -> str:
    """Return the page as text: its sections with the head, styles, chart data and scripts."""
    return render_template(
        "report",
        written.report.race,
        report=written,
        goal=written.report.goal,
        how_found=written.report.how_found,
        sections=page,
        style=source("report.css"),
        version=version("flowrace"),
        colours=list(zip(svg.ARMS, svg.ARMS_DARK, strict=True)),
        scripts=[Markup(_vendored(f"{LIBRARY}.js")), source("report.js")],
        chart_style=Markup(_vendored(f"{LIBRARY}.css")),
        data=Markup(chart_data.script_json(_data(written.report))),
    )


def _data(report: RaceReport) -> dict[str, Any]:
    """Return the data of the page's script: charts, and the line styles of the printed figures."""
    looks = {"colours": len(svg.ARMS), "dashes": [[2 * d for d in dashes] for dashes in svg.DASHES]}
    charts = chart_data.payload(report.race, report.by_target, race_figures.AXIS_NAMES)
    return charts | looks | {"arms": [arm.label for arm in report.race.arms]}


def _vendored(name: str) -> str:
    return (resources.files("reports") / "vendor" / name).read_text(encoding="utf-8")


def _command(directories: Sequence[Path | str], output: Path, given: Mapping[str, Any]) -> str:
    """Return the shell command that writes this report, with the options that were given.

    The user name and password of a store are left out.
    """
    lists = {name: value if isinstance(value, list | tuple) else [value] for name, value in given.items()}
    options = [
        text
        for name, values in lists.items()
        for value in values
        if value is not None
        for text in (name, str(value))
    ]
    return shlex.join(
        ["flowrace", "report", *(shown(str(one)) for one in directories), "-o", str(output), *options]
    )


def _check_free(file: Path, mark: str) -> None:
    """Raise `UserError` if a file cannot be created, or exists and was not written by flowrace."""
    if file.is_dir():
        raise UserError(f"output {file} is a folder; give a file, for example {file / 'report.html'}")
    if not file.parent.is_dir():
        raise UserError(f"cannot write {file}: {file.parent} is not a folder; create it first")
    if not file.exists():
        return
    try:
        with open(file, encoding="utf-8", errors="replace") as text:
            head = text.read(4096)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if mark not in head:
        raise UserError(f"{file} already exists and is not a flowrace report; give another output")


def _write(file: Path, content: str) -> None:
    try:
        write_atomic(file, content.encode())
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error
