"""Times and speed-ups as texts for readers, in units that suit their size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reports.analysis.report import RaceReport
from reports.analysis.rows import mlperf_rows
from reports.race.race import Race
from reports.stats.mlperf import RULE
from reports.stats.number_format import column_unit, digits, factor, interval, quantity
from reports.stats.speedup import Speedup

MOST_ACROSS = 3
"""The largest number of rows for which the headline's table has them as columns."""


@dataclass(frozen=True)
class GainTable:
    """A table of speed-ups: texts by row and axis."""

    title: str
    rows: dict[str, dict[str, dict[str, str]]]
    turned: bool = False
    """True if rows are shown as columns."""


def headline_tables(report: RaceReport) -> list[GainTable]:
    """Return the tables below the headline: speed-ups by arm, or pooled over cells, then by cell."""
    race, title = report.race, f"Speed-up over {report.race.reference}"
    if report.across is None:
        rows = {
            label: {axis: gain_texts(race.speedups.get((axis, label))) for axis in race.axes}
            for label in race.candidates
        }
        return [GainTable(title, rows, len(rows) <= MOST_ACROSS)] if race.speedups else []
    found = [GainTable(title, _cell_rows(report))]
    if report.across == "pooled":
        pooled = {name: _pooled_row(report, name) for name in report.objectives[1:]}
        count = max(len(effect.cells) for effect in report.pooled.values())
        found.insert(0, GainTable(f"{title}, pooled over {count} cells", pooled, len(pooled) <= MOST_ACROSS))
    return [table for table in found if table.rows]


def _pooled_row(report: RaceReport, name: str) -> dict[str, dict[str, str]]:
    effects = {axis: report.pooled.get((axis, name)) for axis in report.race.axes}
    return {axis: gain_texts(effect and effect.gain) for axis, effect in effects.items()}


def _cell_rows(report: RaceReport) -> dict[str, dict[str, dict[str, str]]]:
    """Return one row for each objective of each compared cell."""
    return {
        f"{name}, {cell.label}": {
            axis: gain_texts(cell.speedups.get((axis, name))) for axis in report.race.axes
        }
        for cell in report.workloads
        for name in list(cell.runs)[1:]
        if not cell.why
    }


def axis_texts(race: Race, axis: str) -> list[dict[str, str]]:
    """Return one row of texts per arm: method, time to target and its interval, speed-up and its interval,
    and direction."""
    rows = []
    known = [time.estimate for (on, _), time in race.times.items() if on == axis]
    unit = column_unit(axis, known)
    for arm in race.arms:
        time, gain = race.times.get((axis, arm.label)), race.speedups.get((axis, arm.label))
        if time is None:
            continue
        rows.append(
            {
                "method": arm.label,
                "time": ("> " if time.right == time.n else "") + in_unit(axis, time.estimate, unit),
                "between": _between(axis, time.low, time.high, unit),
                "n": str(time.n),
                "censored": _censored(time.right, time.left),
                **gain_texts(gain, baseline=arm.label in race.baselines),
            }
        )
    return rows


def mlperf_line(race: Race) -> str:
    """Return MLPerf's aggregates in steps as a sentence; empty if no arm has a valid one."""
    rows = [row for row in mlperf_rows(race) if row["axis"] == "steps"]
    if all(row["time"] is None for row in rows):
        return ""
    texts = [
        f"{row['method']} {quantity('steps', row['time']) if row['time'] is not None else 'invalid'} "
        f"(n = {row['n']}{'; ' + row['invalid'] if row['invalid'] else ''})"
        for row in rows
    ]
    return f"MLPerf's aggregate of steps ({RULE}): {', '.join(texts)}."


def gain_texts(gain: Speedup | None, *, baseline: bool = False) -> dict[str, str]:
    """Return a speed-up as texts: factor, interval, n and direction, which is also a CSS class."""
    if baseline or gain is None or gain.estimate is None:
        direction = "baseline" if baseline else "undefined"
        return {"factor": "", "interval": "", "pairs": "", "direction": direction}
    pairs = f"n = {gain.n}" + ("" if gain.paired else ", unpaired")
    ends = interval(gain.low, gain.high) or "no interval"
    return {
        "factor": f"{factor(gain.estimate)}×",
        "interval": ends,
        "pairs": pairs,
        "direction": gain.direction,
    }


def in_unit(axis: str, value: float, unit: tuple[float, str]) -> str:
    """Return a cost in a given unit, which the other costs of its column share."""
    return quantity(axis, value) if axis == "steps" else f"{digits(value / unit[0])} {unit[1]}".rstrip()


def _between(axis: str, low: float | None, high: float | None, unit: tuple[float, str]) -> str:
    """Return an interval of costs, both ends in the same unit."""
    if low is None or high is None:
        return "no interval"
    size, name = unit
    number = (lambda value: f"{value:,.0f}") if axis == "steps" else digits
    left = "(0" if low == 0 else f"[{number(low / size)}"
    return f"{left}, {'∞)' if math.isinf(high) else number(high / size) + ']'} {name}".rstrip()


def _censored(right: int, left: int) -> str:
    texts = [f"{right} not reached"] if right else []
    return ", ".join(texts + ([f"{left} at first evaluation"] if left else []))
