"""CSV files of curves: tidy ones, W&B's chart exports, TensorBoard's downloads, Lightning's metrics."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from harness.errors import UserError
from harness.files.csv_cells import plain
from harness.files.files import read_text
from reports.logs.curves import (
    LogCurve,
    LogPoint,
    Understood,
    drop_smoothed,
    number,
    whole_number,
)
from reports.logs.log_map import LogMap, Unit
from reports.logs.names import logged_config, name_run

COLUMNS = ("method", "seed", "step", "metric", "value")
COSTS = ("images", "flops", "seconds", "gpu_seconds")
OPTIONAL = (*COSTS, "protocol")
COUNTERS: dict[str, Unit] = {
    "step": "steps",
    "_step": "steps",
    "global_step": "steps",
    "trainer/global_step": "steps",
    "train/global_step": "steps",
    "steps": "steps",
    "iteration": "steps",
    "iter": "steps",
    "images": "images",
    "samples": "images",
    "nimg": "images",
    "kimg": "kimg",
    "epoch": "epochs",
    "epochs": "epochs",
}
"""Columns that count progress, in lower case, and what they count."""
NOT_METRICS = {
    *COUNTERS,
    "_runtime",
    "_timestamp",
    "relative time (process)",
    "relative time (wall)",
    "wall time",
}
ENDS = ("__MIN", "__MAX")
"""Endings of the columns in which W&B gives the range of the values that a cell averages."""
EQUAL = 1e-9
"""Relative difference up to which a cell equals the ends of its range."""
TENSORBOARD = ("wall time", "step", "value")
Wanted = Callable[[str, str], bool]
"""A test of the method and the metric of a tidy file's line; other lines are not parsed."""


@dataclass(frozen=True)
class Table:
    """The header and the lines of a CSV, with their numbers."""

    file: Path
    header: list[str]
    rows: list[tuple[int, list[str]]]

    def where(self, line: int) -> str:
        return f"{self.file} line {line}"

    def cells(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the place and the cells by column of every line."""
        for line, cells in self.rows:
            yield self.where(line), dict(zip(self.header, cells, strict=True))


def read_table(file: Path, kind: str = "a CSV") -> Table:
    """Read a CSV with commas; raises `UserError` for anything else, naming file and line."""
    try:
        reader = csv.reader(
            io.StringIO(read_text(file, f"text in UTF-8: expected {kind}"), newline=""), strict=True
        )
        header = [name.strip() for name in next(reader, [])]
        if not any(header):
            raise UserError(f"{file} is empty: expected {kind}")
        if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
            raise UserError(f"{file}: columns must be separated by commas, not by semicolons or tabs")
        if twice := sorted({name for name in header if name and header.count(name) > 1}):
            raise UserError(f"{file}: two columns are named '{twice[0]}'")
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError(f"cannot read {file}: {error}") from error
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(
                f"{file} line {line}: {len(cells)} cells, but the header names {len(header)} columns"
            )
    return Table(file, header, rows)


def read_csv(file: Path, rules: LogMap, wanted: Wanted = lambda method, metric: True) -> Understood:
    """Return the curves of a CSV of any known layout; the header decides which it is.

    Raises `UserError` for a header of no known layout.
    """
    table = read_table(file, f"a CSV with columns {', '.join(COLUMNS)}")
    names = [name.lower() for name in table.header]
    if sorted(names) == sorted(TENSORBOARD):
        return _tensorboard(table, rules)
    if any(" - " in name for name in table.header):
        return _wide(table, rules)
    if {"step", "epoch"} <= set(names) and not {"method", "seed"} & set(names):
        return _lightning(table, rules)
    return read_tidy_table(table, rules, wanted)


def read_tidy_table(table: Table, rules: LogMap, wanted: Wanted = lambda method, metric: True) -> Understood:
    """Return the curves of a table with one value a line, in file order."""
    # Names of columns in capitals are those of a spreadsheet or of a data frame for a plot.
    lowered = [name.lower() if name.lower() in (*COLUMNS, *OPTIONAL) else name for name in table.header]
    if len(set(lowered)) == len(lowered):
        table = Table(table.file, lowered, table.rows)
    notes = check_header(table.file, table.header)
    if not table.rows:
        raise UserError(f"{table.file} has a header and no lines")
    found: dict[tuple[str, int, str], list[LogPoint]] = {}
    for where, cells in table.cells():
        row = {name: cell.strip() for name, cell in cells.items()}
        method = normalize("NFC", plain(row["method"]))
        method = rules.methods.get(method, method)
        metric = rules.metric(plain(row["metric"]))
        if wanted(method, metric):
            key = method, whole_number(row["seed"], where, "seed"), metric
            found.setdefault(key, []).append(_tidy_point(where, row, rules))
    curves = [
        LogCurve(method, seed, metric, tuple(points), points[0].where, method)
        for (method, seed, metric), points in found.items()
    ]
    return Understood(tuple(curves), notes)


def check_header(file: Path, header: Sequence[str]) -> tuple[str, ...]:
    """Check the columns of a tidy file and return notes on ignored ones."""
    for name in COLUMNS:
        if name not in header:
            near = difflib.get_close_matches(name, header, n=1, cutoff=0.6)
            hint = f" Is it '{near[0]}'?" if near else ""
            raise UserError(
                f"{file}: no column '{name}' (needed: {', '.join(COLUMNS)}; or an export of W&B, "
                "TensorBoard or "
                f"Lightning).{hint}"
            )
    rest = [name for name in header if name and name not in (*COLUMNS, *OPTIONAL)]
    return (f"Columns not used: {', '.join(rest)} (known: {', '.join(OPTIONAL)}).",) if rest else ()


def _tidy_point(where: str, row: Mapping[str, str], rules: LogMap) -> LogPoint:
    count = whole_number(row["step"], where, "step")
    if count < 0:
        raise UserError(f"{where}: step = {count}: expected 0 or more")
    value = number(row["value"], where, "value")
    costs = {axis: number(row[axis], where, axis) for axis in COSTS if row.get(axis)}
    for axis, total in costs.items():
        if not 0 <= total < float("inf"):
            raise UserError(f"{where}: {axis} = {row[axis]}: expected the total since step 0, above 0")
        if total == 0 and count > 0:
            raise UserError(f"{where}: {axis} = {total:g}: expected the total since step 0, above 0")
    protocol = plain(row.get("protocol", ""))
    return LogPoint(rules.steps_of(count, "steps", where), value, where, costs, protocol)


def _wide(table: Table, rules: LogMap) -> Understood:
    """Read a chart that W&B exported: a column `RUN - METRIC` a run, and the range of each of its cells."""
    counter = next((name for name in table.header if name.lower() in COUNTERS), None)
    if counter is None:
        raise UserError(
            f"{table.file}: no column counts steps (columns: {', '.join(table.header[:4])}, ...; known: "
            "Step, "
            "global_step, epoch, images, kimg); export the chart with the step on its x axis"
        )
    columns = [n for n in table.header if " - " in n and not n.endswith(ENDS)]
    columns = [n for n in columns if n.rpartition(" - ")[2].lower() not in NOT_METRICS]
    columns, notes = drop_smoothed(table.file, columns)
    if not columns:
        raise UserError(
            f"{table.file}: no column 'RUN - METRIC' (columns: {', '.join(table.header[:4])}, ...)"
        )
    curves = []
    for column in columns:
        run, _, metric = column.rpartition(" - ")
        named = name_run(run, rules)
        points = tuple(_wide_points(table, counter, column, rules))
        if points:
            source = f"{table.file}, column '{column}'"
            curves.append(LogCurve(named.method, named.seed, rules.metric(metric), points, source, run))
        else:
            notes.append(f"{table.file}: column '{column}' is empty.")
    if counter.lower() in ("step", "_step") and rules.steps.unit is None:
        notes.append(
            f"{table.file}: '{counter}' of W&B counts calls of log; it is read as the training step."
        )
    return Understood(tuple(curves), tuple(notes))


def _wide_points(table: Table, counter: str, column: str, rules: LogMap) -> Iterator[LogPoint]:
    for line, cells in table.cells():
        if not (text := cells[column].strip()):
            continue
        where = f"{line}, column '{column}'"
        value = number(text, where, "value")
        for end in (cells.get(column + end, "").strip() for end in ENDS):
            # The ends are empty in charts whose cells are single values.
            if end and abs(number(end, where, "the range") - value) > EQUAL * abs(value):
                raise UserError(
                    f"{where}: the cell averages values from {cells[column + ENDS[0]]} to "
                    f"{cells[column + ENDS[1]]}; "
                    "export single runs without grouping, at full fidelity"
                )
        yield LogPoint(_steps(cells[counter], COUNTERS[counter.lower()], where, counter, rules), value, where)


def _tensorboard(table: Table, rules: LogMap) -> Understood:
    """Read a scalar that TensorBoard downloaded; the name of the file is `run-RUN-tag-TAG.csv`."""
    match = re.fullmatch(r"(?:run-)?(?P<run>.+?)[-_.]tag[-_.](?P<tag>.+)", table.file.stem)
    run, tag = (match["run"], match["tag"]) if match else (table.file.stem, "")
    if not tag and len(rules.metrics) != 1:
        raise UserError(
            f"{table.file}: the file's name does not give the metric; expected run-RUN-tag-METRIC.csv, as "
            "TensorBoard "
            "names it"
        )
    metric = rules.metric(tag) if tag else next(iter(rules.metrics.values()))
    # A second download of one name gets a number.
    metric = re.sub(r" \(\d+\)$", "", metric)
    drop_smoothed(table.file, [metric])
    named = name_run(run, rules, table.file.parent / run)
    columns = {name.lower(): name for name in table.header}
    points = tuple(
        LogPoint(
            _steps(cells[columns["step"]], "steps", where, "step", rules),
            number(cells[columns["value"]], where, "value"),
            where,
        )
        for where, cells in table.cells()
    )
    if not points:
        raise UserError(f"{table.file} has a header and no lines")
    return Understood((LogCurve(named.method, named.seed, metric, points, str(table.file), run),))


def _lightning(table: Table, rules: LogMap) -> Understood:
    """Read Lightning's `metrics.csv`: a column a metric, with empty cells where it was not logged."""
    columns = {name.lower(): name for name in table.header}
    names = [name for name in table.header if name and name.lower() not in NOT_METRICS]
    names, notes = drop_smoothed(table.file, names)
    folder = table.file.parent
    own_name = table.file.stem != "metrics"
    path = folder / table.file.stem if own_name else folder.absolute()
    named = name_run(str(folder) if not own_name else table.file.stem, rules, path, logged_config(folder))
    found: dict[str, list[LogPoint]] = {}
    for where, cells in table.cells():
        for name in names:
            if text := cells[name].strip():
                count = _steps(cells[columns["step"]], "steps", where, "step", rules)
                found.setdefault(name, []).append(LogPoint(count, number(text, where, name), where))
    curves = [
        LogCurve(named.method, named.seed, rules.metric(name), tuple(points), str(table.file), str(folder))
        for name, points in found.items()
    ]
    return Understood(tuple(curves), tuple(notes))


# Any: a cell of a CSV, or a value of JSON.
def _steps(text: Any, unit: Unit, where: str, column: str, rules: LogMap) -> int:
    count = number(text, where, column)
    if count < 0:
        raise UserError(f"{where}: {column} = {text}: expected 0 or more")
    unit = rules.steps.unit or unit
    return rules.steps_of(whole_number(text, where, column) if unit == "steps" else count, unit, where)
