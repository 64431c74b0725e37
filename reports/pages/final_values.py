"""The table of final values: every metric for every arm, real samples first."""

from __future__ import annotations

from itertools import groupby

from markupsafe import Markup

from harness.records.evaluations import without_parts
from reports.analysis.report import RaceReport
from reports.analysis.rows import Row
from reports.pages.section import render_template
from reports.stats.number_format import digits


def final_value_section(report: RaceReport) -> Markup | None:
    """Return the section; None if there is only the race's metric, whose last values are in the table of
    runs."""
    groups = groupby(report.final_value_rows, key=lambda row: row["metric"])
    tables = {metric: [_texts(row) for row in group] for metric, group in groups}
    if len(tables) <= 1:
        return None
    short = without_parts(tables)
    parts = {metric: table for metric, table in tables.items() if metric not in short}
    return render_template("final_values", report.race, tables=short, parts=parts)


def _texts(row: Row) -> dict[str, str]:
    about = "" if row["n"] is None else f"step {row['step']:,}, n = {row['n']}"
    ends = "" if row["low"] is None else f"[{_signed(row['low'])}, {_signed(row['high'])}]"
    return {"method": row["method"], "about": about, "mean": _signed(row["mean"]), "ends": ends}


def _signed(value: float) -> str:
    return digits(value).replace("-", "−")
