"""The inputs of `flowrace report diff`: a folder of runs, or the CSV file of a report."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files.csv_cells import plain
from reports.analysis.diff import Estimate, ReportSide, final_estimates
from reports.analysis.report import read_report
from reports.analysis.rows import ARM_COLUMNS, RUN_COLUMNS
from reports.race.arms import flatten
from reports.race.protocols import protocols_of
from reports.race.race import Race


def read_side(
    path: Path, *, metric: str | None = None, target: str | None = None, baseline: str | None = None
) -> ReportSide:
    """Read a folder of runs, like `flowrace report`, or the CSV file of a report.

    Raises `UserError` for anything else.
    """
    if path.is_dir():
        report = read_report([path], metric=metric, target=target, baseline=baseline)
        race, runs = report.race, [row | {"run": str(row["run"])} for row in report.run_rows]
        about = {"metric": race.metric, "target": race.target, "baseline": race.baseline}
        specs = {arm.label: arm.fields for arm in race.arms}
        return _side(path, about, report.arm_rows, runs, specs=specs, protocols=_protocols(race))
    for option, value in (("--metric", metric), ("--target", target), ("--baseline", baseline)):
        if value is not None:
            raise UserError(
                f"{option} {value} needs the runs, but {path} is a table; give the folder of its runs"
            )
    rows = _read(path, ARM_COLUMNS)
    file = path.with_name(f"{path.stem}-runs.csv")
    runs = _read(file, RUN_COLUMNS) if file.is_file() else []
    about: dict[str, Any] = {key: rows[0][key] for key in ("metric", "target", "baseline")}
    about["target"] = _number(path, about["target"])
    return _side(path, about, rows, runs)


def _side(
    path: Path,
    about: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    **more: Any,
) -> ReportSide:
    numbers: dict[tuple[str, str, str], Estimate] = {}
    for row in rows:
        for what, count in (("time", "n"), ("speedup", "pairs")):
            number = _interval(path, row, what, count)
            if number is not None:
                numbers[what, str(row["axis"]), str(row["method"])] = number
    numbers |= {("final", "", arm): number for arm, number in final_estimates(runs).items()}
    return ReportSide(str(path), about, numbers, {str(row["run"]): row for row in runs}, **more)


def _interval(path: Path, row: Mapping[str, Any], what: str, count: str) -> Estimate | None:
    """Return one number of a row with its interval; None if the row has no value.

    An empty end is open if n is at least 2, else there is no interval.
    """
    value, n = _number(path, row[what]), _number(path, row[count])
    if value is None:
        return None
    low, high = _number(path, row[f"{what}_low"]), _number(path, row[f"{what}_high"])
    if n is not None and n >= 2:
        low, high = (0.0 if low is None else low), (math.inf if high is None else high)
    return Estimate(value, low, high, None if n is None else int(n))


def _number(path: Path, text: Any) -> float | None:
    if text in (None, ""):
        return None
    try:
        return float(text)
    except ValueError as error:
        raise UserError(
            f"{path}: {text!r} is not a number; give a CSV file that `flowrace report` wrote"
        ) from error


def _read(file: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with open(file, newline="", encoding="utf-8") as content:
            rows = csv.DictReader(content)
            found, names = [_plain(row) for row in rows], rows.fieldnames or []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {file}; give a folder of runs, or a CSV file that `flowrace report` wrote"
        ) from error
    absent = [name for name in columns if name not in names]
    if absent:
        raise UserError(f"{file} is not a table of a report: it has no column {', '.join(absent)}")
    if not found:
        raise UserError(f"{file} has no rows: its report had no finished run")
    return found


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain(cell) if isinstance(cell, str) else cell for name, cell in row.items()}


def _protocols(race: Race) -> dict[str, Mapping[str, Any]]:
    """Return flat protocols by hash; the hash alone if a record has no protocol."""
    found: dict[str, Mapping[str, Any]] = {}
    for run in race.runs:
        recorded = protocols_of(run.record, race.metric)
        found |= {one: flatten(fields) for one, fields in sorted(recorded.items())}
    return found
