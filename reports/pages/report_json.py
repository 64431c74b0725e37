"""The report as one JSON object, for machines; an end that is open is null."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from reports.analysis.performance_profile import profile
from reports.pages import final_values as finals_table
from reports.pages import tables
from reports.race.cells import Cell, cells_of, objectives_of, pool
from reports.race.race import Race
from reports.stats.speedup import Speedup


def to_json(
    race: Race, verdict: dict[str, str], caveats: list[str], claims: list[dict[str, Any]], html: str
) -> str:
    """Everything that a page has as numbers; `claims` as `flowrace audit --json` has them."""
    cells = cells_of(race)
    content = {
        "name": race.name,
        "metric": race.metric,
        "target": race.target,
        "target_chosen_after_the_fact": race.target is not None and not race.target_given,
        "baseline": race.baseline,
        "verdict": verdict,
        "caveats": caveats,
        "claims": claims,
        "rows": tables.rows(race),
        "cells": [row for cell in cells for row in _of_cell(cell)],
        "pooled": list(_pooled(race, cells)),
        "profiles": [row for axis in race.axes for row in _profile(race, cells, axis)],
        "finals": finals_table.rows(race),
        "runs": tables.run_rows(race),
        "html": html,
    }
    return json.dumps(content, indent=1, allow_nan=False)


def _of_cell(cell: Cell) -> Iterator[dict[str, Any]]:
    """The speed-ups of one cell; a cell that compares nothing says why."""
    about = {"cell": cell.label, "target": cell.target}
    if cell.why:
        yield about | {"why": cell.why}
    for (axis, objective), gain in cell.speedups.items():
        yield about | {"axis": axis, "objective": objective, **_gain(gain)}


def _pooled(race: Race, cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """The geometric means over cells, where two or more have an interval."""
    for axis in race.axes:
        for objective in objectives_of(race):
            found = pool({cell.label: cell.speedups.get((axis, objective)) for cell in cells})
            if found is not None:
                whence = {"cells": list(found.cells), "left_out": list(found.left_out)}
                yield {"axis": axis, "objective": objective, **_gain(found.gain), **whence}


def _profile(race: Race, cells: Sequence[Cell], axis: str) -> Iterator[dict[str, Any]]:
    found = profile(race, cells, axis)
    if found is None:
        return
    ends = found.interval()
    for number, (objective, area) in enumerate(zip(found.objectives, found.area(), strict=True)):
        low, high = (None, None) if ends is None else map(float, ends[number])
        row = {"axis": axis, "objective": objective, "area": float(area), "low": low, "high": high}
        yield row | {"problems": found.ratios.shape[1], "left_out": found.left_out}


def _gain(gain: Speedup) -> dict[str, Any]:
    ends = {"speedup": gain.estimate, "low": gain.low or None, "high": gain.high}
    closed = {key: x if x is None or math.isfinite(x) else None for key, x in ends.items()}
    return {**closed, "pairs": gain.n, "direction": gain.direction}
