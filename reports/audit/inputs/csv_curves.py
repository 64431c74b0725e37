"""CSV curves from other tools, with one evaluation per line.

    method,seed,step,metric,value[,images][,flops][,seconds][,gpu_seconds][,protocol]

Within one method, seed and metric, steps increase down the file. Costs are totals since step 0. Other columns
are ignored.
"""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.errors import UserError, unknown
from reports.audit.inputs.run_log import AuditArms, AuditRun
from reports.stats.curves import AXES, Costs, fit

COLUMNS = ("method", "seed", "step", "metric", "value")
COSTS = AXES[1:]
OPTIONAL = (*COSTS, "protocol")


class CsvPoint(NamedTuple):
    """A line of the file that a claim uses."""

    line: int
    step: int
    value: float
    costs: dict[str, float]
    protocol: str


def read_tidy(file: Path, names: Sequence[str], metric: str) -> AuditArms:
    """Return the runs of these methods from a tidy CSV.

    Raises `UserError`, which names file and line, for missing columns, invalid numbers, duplicate points,
    steps or costs that decrease, and values that have no logarithm.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            series, notes = _series(file, lines, names, metric)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not text in UTF-8: expected a CSV with columns {', '.join(COLUMNS)}"
        ) from error
    except (OSError, csv.Error) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    runs: dict[str, dict[int, AuditRun]] = {name: {} for name in names}
    for (method, seed), own in sorted(series.items()):
        if points := [point for point in own if point.step > 0]:
            runs[method][seed] = _log(file, method, seed, points)
        else:
            notes = (
                *notes,
                f"{method} seed {seed} has {metric} at step 0 only, so it is excluded from all numbers.",
            )
    return AuditArms(runs, notes)


def _series(
    file: Path, lines: Iterator[str], names: Sequence[str], metric: str
) -> tuple[dict[tuple[str, int], list[CsvPoint]], tuple[str, ...]]:
    """Return the points of each run of these methods in file order, and notes on ignored columns."""
    rows = csv.reader(lines, strict=True)
    header = [name.strip() for name in next(rows, [])]
    notes = _check_header(file, header)
    methods, metrics = {}, {}
    series: dict[tuple[str, int], list[CsvPoint]] = {}
    for cells in rows:
        where = f"{file} line {rows.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise UserError(f"{where}: {len(cells)} cells, but the header names {len(header)} columns")
        row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        methods[row["method"]] = metrics[row["metric"]] = True
        if row["method"] in names and row["metric"] == metric:
            key = row["method"], _integer(where, row, "seed")
            series.setdefault(key, []).append(_point(where, rows.line_num, row))
    if not methods:
        raise UserError(f"{file} has a header and no lines")
    for name in names:
        if name not in methods:
            raise unknown(f"method in {file}:", name, methods)
    if metric not in metrics:
        raise unknown(f"metric in {file}:", metric, metrics)
    return series, notes


def _check_header(file: Path, header: Sequence[str]) -> tuple[str, ...]:
    """Check the columns and return notes on ignored ones."""
    if not any(header):
        raise UserError(f"{file} is empty: expected a CSV with columns {', '.join(COLUMNS)}")
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise UserError(f"{file}: columns must be separated by commas, not by semicolons or tabs")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise UserError(f"{file}: two columns are named '{twice[0]}'")
    for name in COLUMNS:
        if name not in header:
            near = difflib.get_close_matches(name, header, n=1, cutoff=0.6)
            hint = f" Is it '{near[0]}'?" if near else ""
            raise UserError(f"{file}: no column '{name}' (needed: {', '.join(COLUMNS)}).{hint}")
    rest = [name for name in header if name not in (*COLUMNS, *OPTIONAL)]
    return (f"Columns not used: {', '.join(rest)} (known: {', '.join(OPTIONAL)}).",) if rest else ()


def _point(where: str, line: int, row: Mapping[str, str]) -> CsvPoint:
    step, value = _integer(where, row, "step"), _number(where, row, "value")
    if step < 0:
        raise UserError(f"{where}: step = {step}: expected 0 or more")
    if value <= 0:
        raise UserError(
            f"{where}: value = {value:g}: the audit uses the metric's logarithm, so it must be above 0"
        )
    costs = {axis: _number(where, row, axis) for axis in COSTS if row.get(axis)}
    for axis, total in costs.items():
        if total < 0 or (total == 0 and step > 0):
            raise UserError(f"{where}: {axis} = {total:g}: expected the total since step 0, above 0")
    return CsvPoint(line, step, value, costs, row.get("protocol", ""))


def _log(file: Path, method: str, seed: int, points: Sequence[CsvPoint]) -> AuditRun:
    run = f"{method} seed {seed}"
    for last, point in pairwise(points):
        where = f"{file} line {point.line}"
        if point.step == last.step:
            raise UserError(
                f"{where}: {run} has two values at step {point.step} (the other is in line {last.line})"
            )
        if point.step < last.step:
            raise UserError(
                f"{where}: the steps of {run} go backwards, from {last.step} to {point.step}; sort them, and "
                "remove rows that a restart superseded"
            )
        for axis in point.costs.keys() & last.costs.keys():
            if point.costs[axis] < last.costs[axis]:
                raise UserError(f"{where}: {axis} of {run} goes backwards; expected totals since step 0")
    steps = [point.step for point in points]
    costs = {axis: [p.costs[axis] for p in points] for axis in COSTS if all(axis in p.costs for p in points)}
    totals = {axis: np.array([0.0, *values]) for axis, values in {"steps": steps, **costs}.items()}
    recorded = {point.protocol: {"protocol": point.protocol} for point in points}
    return AuditRun(
        method,
        seed,
        f"{file} line {points[0].line}",
        fit(steps, [point.value for point in points]),
        Costs(totals["steps"], totals),
        recorded if any(recorded) else {},
    )


def _number(where: str, row: Mapping[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        raise UserError(
            f"{where}: {column} = '{row[column]}': expected a plain number, without a unit"
        ) from None
    if not math.isfinite(value):
        raise UserError(f"{where}: {column} = {row[column]}: expected a finite number")
    return value


def _integer(where: str, row: Mapping[str, str], column: str) -> int:
    value = _number(where, row, column)
    if value != int(value):
        raise UserError(f"{where}: {column} = {row[column]}: expected a whole number")
    return int(value)
