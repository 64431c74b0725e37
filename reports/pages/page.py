"""One offline HTML file, and the CSV files beside it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.errors import UserError
from harness.record import Record, write_atomic
from reports.arms import differences
from reports.pages import charts, figures, svg, tables
from reports.pages.samples import samples_of
from reports.race import Race, hardware, protocols, read_race
from reports.verdict import caveats, goal, sentence

MARK = '<meta name="generator" content="flowrace'
"""By this a report knows a report of its own, and replaces no other file."""
LIBRARY = "uplot-1.6.32.min"
"""The chart library, in `vendor/` with its licence."""
COUNTED_OUT = ("eval", "checkpoint", "tracking", "warmup")


@dataclass(frozen=True)
class Report:
    """What was written, and what it says."""

    html: Path
    csv: Path
    runs_csv: Path
    race: Race
    verdict: Mapping[str, str]
    """One or two sentences for each axis, steps first."""
    caveats: tuple[str, ...]

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
) -> Report:
    """Report on the runs in these folders: `output` (.html) and, beside it, the same numbers as two CSV files.

    What is not given comes from a folder's `study.toml`. The same records give the same bytes.
    Raises `UserError` for a mistake of the user's, before anything is written.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"output {output}: a report is an .html file, as report.html")
    files = (output, output.with_suffix(".csv"), output.with_name(f"{output.stem}-runs.csv"))
    marks = (MARK, ",".join(tables.COLUMNS), ",".join(tables.RUN_COLUMNS))
    for file, mark in zip(files, marks, strict=True):
        _check_free(file, mark)
    race = read_race(directories, metric=metric, target=target, baseline=baseline)
    verdict = {axis: sentence(race, axis) for axis in race.axes}
    report = Report(*files, race, verdict, tuple(caveats(race)))
    given = {"--metric": metric, "--target": target, "--baseline": baseline}
    contents = {
        report.csv: tables.to_csv(tables.COLUMNS, tables.rows(race)),
        report.runs_csv: tables.to_csv(tables.RUN_COLUMNS, tables.run_rows(race)),
        report.html: render(report, _command(directories, output, given)),
    }
    for file, content in contents.items():
        _write(file, content)
    return report


def render(report: Report, command: str) -> str:
    """The page as text; everything from users is escaped by the template engine."""
    race = report.race
    loader = PackageLoader("reports")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["whole"] = _whole
    environment.globals |= {
        "quantity": tables.quantity,
        "digits": tables.digits,
        "axis_names": figures.AXIS_NAMES,
    }
    return environment.get_template("report.html.j2").render(
        report=report,
        race=race,
        verdict=report.verdict,
        goal=None if race.target is None else goal(race),
        style=Markup(loader.get_source(environment, "report.css")[0]),
        version=version("flowrace"),
        colours=list(zip(svg.ARMS, svg.ARMS_DARK, strict=True)),
        legend=[_swatch(index, arm.label) for index, arm in enumerate(race.arms)],
        strips={axis: {c: tables.gain_cells(race.speedups.get((axis, c))) for c in race.candidates} for axis in race.axes},
        cells={axis: tables.cells(race, axis) for axis in race.axes},
        charts=_charts(race),
        scripts=[Markup(text) for text in (_vendored(f"{LIBRARY}.js"), loader.get_source(environment, "report.js")[0])],
        chart_style=Markup(_vendored(f"{LIBRARY}.css")),
        data=Markup(charts.as_json(_data(race))),
        thinned=_thinned(race),
        phases=figures.PHASES,
        costs=[_cost_row(race, arm.label) for arm in race.arms],
        samples=samples_of(race),
        runs=tables.run_rows(race),
        differences=differences(race.arms),
        provenance=_provenance(race),
        command=command,
    )  # fmt: skip


def _whole(text: str) -> str:
    """A sentence whose intervals and counts do not break over lines."""
    text = re.sub(r"([\[(][^ ,]+), ([^ ,]+[\])])", "\\1,\u00a0\\2", text)
    return text.replace("95 %", "95\u00a0%").replace("n = ", "n\u00a0=\u00a0")


def _charts(race: Race) -> dict[str, Any]:
    """Every picture, wide and narrow."""
    sizes = (figures.WIDE, figures.NARROW)
    drawn = any(run.curve is not None for run in race.runs)
    return {
        "convergence": {
            axis: [_inline(figures.convergence(race, axis, width)) for width in sizes] for axis in race.axes if drawn
        },
        "targets": {
            axis: [_inline(figures.targets(race, axis, width)) for width in sizes]
            for axis in race.axes
            if race.speedups and len(charts.targets(race))
        },
        "forest": [_inline(figures.forest(race, width)) for width in sizes] if race.speedups else [],
        "cost": [_inline(figures.cost(race, width)) for width in sizes] if any(r.record.of("train") for r in race.runs) else [],
    }  # fmt: skip


def _inline(picture: svg.Picture) -> Markup:
    return Markup(svg.inline(picture))


def _data(race: Race) -> dict[str, Any]:
    """What the script draws, with the looks that it shares with the printed figures."""
    looks = {"colours": len(svg.ARMS), "dashes": [[2 * d for d in dashes] for dashes in svg.DASHES]}
    return charts.payload(race, figures.AXIS_NAMES) | looks | {"arms": [arm.label for arm in race.arms]}


def _vendored(name: str) -> str:
    return (resources.files("reports") / "vendor" / name).read_text(encoding="utf-8")


def _thinned(race: Race) -> int | None:
    """Points to which long curves were thinned on the page; None when every curve is whole."""
    most = charts.allowance(race)
    longest = max((len(run.curve.steps) for run in race.runs if run.curve is not None), default=0)
    return most if longest > most else None


def _swatch(index: int, label: str) -> dict[str, str]:
    dashes = svg.DASHES[index % len(svg.DASHES)]
    return {
        "label": label,
        "colour": f"arm{index % len(svg.ARMS)}",
        "dashes": " ".join(str(2 * d) for d in dashes),
    }


def _cost_row(race: Race, label: str) -> dict[str, Any]:
    """FLOPs and seconds of a step, and what was booked but does not count, in seconds by phase, summed over runs."""
    runs = race.of(label)
    totals = [[e["seconds"] for e in run.record.events if "seconds" in e][-1:] for run in runs]
    steps = [run for run in runs if run.costs.budget("steps") > 0]
    flops = [run.costs.budget("flops") / run.costs.budget("steps") for run in steps]
    return {
        "label": label,
        "flops": sum(flops) / len(flops) if flops else None,
        "seconds": sum(figures.phase_seconds(runs).values()),
        "apart": {phase: sum(t.get(phase, 0.0) for last in totals for t in last) for phase in COUNTED_OUT},
    }


def _provenance(race: Race) -> list[tuple[str, list[str]]]:
    """What the runs ran on and with, each value once; hosts are left out."""
    starts = [start for run in race.runs for start in run.record.environment]
    python = [f"python {start['python']}" for start in starts if "python" in start]
    packages = [f"{name} {found}" for start in starts for name, found in start.get("packages", {}).items()]
    machines = [text for run in race.runs for text in hardware(run.record)]
    encoders = [_encoder(encoder) for start in starts for encoder in start.get("encoders", ())]
    facts = {
        "Packages": [", ".join(dict.fromkeys([*python, *packages]))],
        "Code": [str(start["code"]) for start in starts if start.get("code")],
        "Hardware": machines,
        "Data (fingerprint)": [str(s["data_fingerprint"]) for s in starts if "data_fingerprint" in s],
        "Encoders": encoders,
        "Evaluation protocol": protocols(race.runs),
        "Restarts": [_restarts(run.record) for run in race.runs if len(run.record.environment) > 1],
    }
    return [(name, sorted(set(values))) for name, values in facts.items() if any(values)]


def _encoder(encoder: Mapping[str, Any]) -> str:
    parts = [str(encoder.get("name"))]
    parts += [f"{encoder['params']:,} parameters"] if encoder.get("params") else []
    parts += [f"held-out accuracy {encoder['accuracy']:.1%}"] if encoder.get("accuracy") is not None else []
    return ", ".join(parts + ([f"sha256 {encoder['sha256'][:12]}"] if encoder.get("sha256") else []))


def _restarts(record: Record) -> str:
    steps = ", ".join(str(start.get("after_step", "?")) for start in record.environment[1:])
    return f"{record.id} continued after step {steps}"


def _command(directories: Sequence[Path], output: Path, given: Mapping[str, Any]) -> str:
    options = [text for name, value in given.items() if value is not None for text in (name, str(value))]
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
