"""The forest of a study of several cells: the speed-up in each of them, and the pooled one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from reports.figures.layout import fill, width_name
from reports.figures.race_figures import AXIS_NAMES, draw_gains, gain_row
from reports.figures.strips import ROW, Row
from reports.figures.svg import Picture, style
from reports.pages import tables
from reports.pages.section import drawings, render
from reports.race.cells import Cell, Pooled, cells_of, pool, sooner
from reports.race.race import Race
from reports.stats.speedup import Speedup

POOLED = "pooled"


def forest(race: Race) -> Markup | None:
    """The section; None for one cell, or where no cell compares anything."""
    cells = cells_of(race)
    axes = compared(race, cells)
    if len(cells) < 2 or not axes:
        return None
    return render(
        "forest",
        race,
        pictures={axis: drawings(partial(picture, cells, axis)) for axis in axes},
        tables={axis: _rows(cells, axis) for axis in axes},
        baseline=baseline_of(cells),
        targets=[(cell.label, cell.target) for cell in cells if cell.target is not None],
        silent=[(cell.label, cell.why) for cell in cells if cell.why],
    )


def picture(cells: Sequence[Cell], axis: str, width: float) -> Picture:
    """For each objective its cells and, below them, the pooled effect, on a log scale with a line at 1."""
    rows = [
        row for index, name in enumerate(candidates(cells), 1) for row in _strip(cells, axis, name, index)
    ]
    with style():
        figure = Figure(figsize=(width, ROW * len(rows) + 0.7))
        draw_gains(figure.subplots(), rows, width, baseline_of(cells))
        fill(figure, left=0.12)
        said = f"speed-up in {AXIS_NAMES[axis]} by cell, with intervals"
        return Picture(figure, f"cells-{axis}-{width_name(width)}", said)


def compared(race: Race, cells: Sequence[Cell]) -> list[str]:
    """The axes on which some cell has a speed-up."""
    found = {axis for cell in cells for (axis, _), gain in cell.speedups.items() if gain.estimate is not None}
    return [axis for axis in race.axes if axis in found]


def candidates(cells: Sequence[Cell]) -> list[str]:
    """The objectives that some cell compares with its baseline, in order."""
    return list(dict.fromkeys(name for cell in cells for _, name in cell.speedups))


def baseline_of(cells: Sequence[Cell]) -> str:
    return next(next(iter(cell.runs)) for cell in cells if not cell.why)


def _gains(cells: Sequence[Cell], axis: str, name: str) -> dict[str, Speedup | None]:
    return {cell.label: cell.speedups.get((axis, name)) for cell in cells}


def _strip(cells: Sequence[Cell], axis: str, name: str, index: int) -> list[Row]:
    gains = _gains(cells, axis, name)
    rows = [gain_row(label, index, g) for label, g in gains.items() if g and g.estimate is not None]
    pooled = pool(gains)
    rows += [gain_row(_pooled_label(pooled), index, pooled.gain)] if pooled else []
    return [Row(name), *rows] if rows else []


def _rows(cells: Sequence[Cell], axis: str) -> list[dict[str, Any]]:
    """The same as texts: one row for each objective and cell, and one pooled."""
    found = []
    for name in candidates(cells):
        gains = _gains(cells, axis, name)
        for cell in cells:
            base = next(iter(cell.runs))
            first, told = (0, 0) if cell.why else sooner(cell.times(base, axis), cell.times(name, axis))
            row = {"objective": name, "cell": cell.label, "sooner": f"{first} of {told}" if told else ""}
            texts = tables.gain_cells(gains[cell.label])
            found.append(row | texts | {"reading": texts["direction"] if name in cell.runs else "no run"})
        pooled = pool(gains)
        if pooled:
            row = {"objective": name, "cell": _pooled_label(pooled), "sooner": _agreement(gains)}
            found.append(row | tables.gain_cells(pooled.gain) | {"reading": pooled.gain.direction})
    return found


def _pooled_label(pooled: Pooled) -> str:
    return f"{POOLED} over {len(pooled.cells)} cells"


def _agreement(gains: dict[str, Speedup | None]) -> str:
    """How many cells resolve which way: a mean of cells that disagree is the effect in none of them."""
    ways = [gain.direction for gain in gains.values() if gain is not None]
    counts = [f"{way} in {ways.count(way)}" for way in ("faster", "slower", "unresolved") if way in ways]
    return ", ".join(counts)
