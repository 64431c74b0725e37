"""The ablation matrix as a table: one row per setting, one column group per cell."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from reports.analysis.ablation import AblationEntry, Resolved
from reports.analysis.report import RaceReport
from reports.pages import tables
from reports.pages.section import render_template
from reports.stats.speedup import Speedup

READINGS: dict[Resolved, str] = {
    "resolved": "",
    "alone": "resolved alone",
    "unresolved": "not resolved",
}


def ablation_section(report: RaceReport) -> Markup | None:
    """Return the section; None for a race without several settings to compare."""
    ablation = report.ablation
    if ablation is None:
        return None
    rows = [
        {"setting": row, "entries": [_texts(ablation.entries[row, column]) for column in ablation.columns]}
        for row in ablation.rows
    ]
    effects = sum(entry.gain is not None for entry in ablation.entries.values())
    return render_template(
        "ablation",
        report.race,
        rows=rows,
        columns=ablation.columns,
        steps=ablation.steps,
        effects=effects,
        readings=READINGS,
    )


def percent(value: float) -> str:
    """Return a ratio as a signed change in per cent.

    >>> percent(0.958), percent(1.0), percent(1.2345)
    ('−4.2 %', '0.0 %', '+23.4 %')
    """
    text = f"{100 * (value - 1):+.1f} %".replace("-", "−")
    return text[1:] if text[1:] == "0.0 %" else text


def change_ends(change: Speedup) -> str:
    """Return the interval of candidate / baseline as changes in per cent; empty without one."""
    if not change.low or change.high is None:
        return ""
    return f"[{percent(1 / change.high)[:-2]}, {percent(1 / change.low)[:-2]}]"


def _texts(entry: AblationEntry) -> dict[str, Any]:
    texts: dict[str, Any] = {"state": entry.state, "why": entry.why, "final": "", "between": "", "n": 0}
    texts |= {
        "change": "",
        "change_ends": "",
        "change_is": entry.change_is,
        "gain_is": entry.gain_is,
        "gain": None,
    }
    if entry.final is not None:
        low, high = entry.final.low, entry.final.high
        ends = "" if low is None or high is None else f"[{tables.digits(low)}, {tables.digits(high)}]"
        texts |= {"final": tables.digits(entry.final.estimate), "between": ends, "n": entry.final.n}
    if entry.change is not None and entry.change.estimate is not None:
        texts |= {"change": percent(1 / entry.change.estimate), "change_ends": change_ends(entry.change)}
    if entry.gain is not None and entry.gain.estimate is not None:
        texts |= {"gain": tables.gain_texts(entry.gain)}
    return texts
