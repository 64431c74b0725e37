"""The forest plot of a study with several cells: the speed-up in each cell, and the pooled one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from reports.analysis.report import RaceReport
from reports.figures.layout import fill, width_name
from reports.figures.race_figures import AXIS_NAMES, draw_gains, gain_row
from reports.figures.strips import StripRow, row_height, strip_entries
from reports.figures.svg import Picture, style
from reports.pages import tables
from reports.pages.section import drawings, render_template
from reports.race.workloads import PooledSpeedup, Workload, count_sooner
from reports.stats.speedup import Speedup

POOLED = "pooled"


def workload_section(report: RaceReport) -> Markup | None:
    """Return the section; None for a single cell, or if nothing is compared in any cell."""
    axes, cells = compared_axes(report), report.workloads
    if len(cells) < 2 or not axes:
        return None
    return render_template(
        "forest",
        report.race,
        pictures={axis: drawings(partial(draw_workloads, report, axis)) for axis in axes},
        tables={axis: _rows(report, axis) for axis in axes},
        baseline=baseline_of(cells),
        targets=[(cell.label, cell.target) for cell in cells if cell.target is not None],
        how_found=report.how_found,
        by_seed=all(pooled.by_seed for pooled in report.pooled.values()),
        silent=[(cell.label, cell.why) for cell in cells if cell.why],
    )


def draw_workloads(report: RaceReport, axis: str, width: float) -> Picture:
    """Draw the speed-up of each objective by cell, with the pooled effect below."""
    names = enumerate(candidates(report.workloads), 1)
    rows = [row for index, name in names for row in _strip(report, axis, name, index)]
    with style():
        figure = Figure(figsize=(width, row_height() * len(rows) + 0.7))
        draw_gains(figure.subplots(), rows, width, baseline_of(report.workloads))
        fill(figure, left=0.12, entries=strip_entries(rows, "geometric mean"))
        description = f"speed-up in {AXIS_NAMES[axis]} by cell, with intervals"
        return Picture(figure, f"cells-{axis}-{width_name(width)}", description)


def compared_axes(report: RaceReport) -> list[str]:
    """Return the axes on which at least one cell has a speed-up."""
    gains = [item for cell in report.workloads for item in cell.speedups.items()]
    compared = {axis for (axis, _), gain in gains if gain.estimate is not None}
    return [axis for axis in report.race.axes if axis in compared]


def candidates(cells: Sequence[Workload]) -> list[str]:
    """Return the objectives that are compared with the baseline in at least one cell, in order."""
    return list(dict.fromkeys(name for cell in cells for _, name in cell.speedups))


def baseline_of(cells: Sequence[Workload]) -> str:
    """Return the baseline's objective, from a cell in which arms are compared."""
    return next(next(iter(cell.runs)) for cell in cells if not cell.why)


def _gains(cells: Sequence[Workload], axis: str, name: str) -> dict[str, Speedup | None]:
    return {cell.label: cell.speedups.get((axis, name)) for cell in cells}


def _strip(report: RaceReport, axis: str, name: str, index: int) -> list[StripRow]:
    gains = _gains(report.workloads, axis, name)
    rows = [gain_row(label, index, g) for label, g in gains.items() if g and g.estimate is not None]
    pooled = report.pooled.get((axis, name))
    rows += [gain_row(_pooled_label(pooled), index, pooled.gain)] if pooled else []
    return [StripRow(name), *rows] if rows else []


def _rows(report: RaceReport, axis: str) -> list[dict[str, Any]]:
    """Return the speed-ups as texts: for each objective a row per cell and a pooled one."""
    rows = []
    for name in candidates(report.workloads):
        gains = _gains(report.workloads, axis, name)
        for cell in report.workloads:
            texts = tables.gain_texts(gains[cell.label])
            row = {"objective": name, "cell": cell.label, "sooner": _sooner(cell, axis, name)}
            rows.append(row | texts | {"reading": texts["direction"] if name in cell.runs else "no run"})
        pooled = report.pooled.get((axis, name))
        if pooled:
            row = {"objective": name, "cell": _pooled_label(pooled), "sooner": _agreement(gains)}
            rows.append(row | tables.gain_texts(pooled.gain) | {"reading": pooled.gain.direction})
    return rows


def _sooner(cell: Workload, axis: str, name: str) -> str:
    """Return the number of seed pairs in which an objective reached the target before the baseline.

    For example "2 of 3"; empty if the order is unknown in all pairs.
    """
    if cell.why:
        return ""
    first, ordered = count_sooner(cell.times(next(iter(cell.runs)), axis), cell.times(name, axis))
    return f"{first} of {ordered}" if ordered else ""


def _pooled_label(pooled: PooledSpeedup) -> str:
    return f"{POOLED} over {len(pooled.cells)} cells"


def _agreement(gains: dict[str, Speedup | None]) -> str:
    """Return the number of cells by direction, because a mean over cells that disagree describes none."""
    ways = [gain.direction for gain in gains.values() if gain is not None]
    counts = [f"{way} in {ways.count(way)}" for way in ("faster", "slower", "unresolved") if way in ways]
    return ", ".join(counts)
