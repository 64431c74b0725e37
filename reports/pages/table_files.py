"""The numbers of a report as table files for a paper: LaTeX (booktabs), Markdown or CSV.

A column has one unit, chosen for its values, so that `3.2 h` is never next to `14 min`. Every mean has its
95 % interval and every row its n.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.files.csv_cells import inert
from harness.files.files import write_atomic
from reports.analysis.report import RaceReport
from reports.race.race import Race
from reports.stats.number_format import column_unit, digits, factor
from reports.stats.speedup import MeanTime, Speedup

AXIS_TITLES = {
    "steps": "Steps",
    "images": "Images",
    "flops": "Training FLOPs",
    "seconds": "Training time",
    "gpu_seconds": "Device time",
}
MARKS = {".tex": "% flowrace table", ".md": "<!-- flowrace table -->", ".csv": "arm,n,"}
"""The beginning of a file that flowrace wrote, by its ending: only such a file is replaced."""


@dataclass(frozen=True)
class Number:
    """A mean with the ends of its interval; 0 and infinity are open ends."""

    value: float
    low: float | None
    high: float | None
    bound: bool = False
    """True for a lower bound, because no run reached the target."""


@dataclass(frozen=True)
class Column:
    """The numbers of one column by row, in one unit; None for an empty entry."""

    title: str
    unit: str
    numbers: tuple[Number | None, ...]
    form: Callable[[float], str] = digits

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit and self.unit != "×" else self.title


@dataclass(frozen=True)
class FileTable:
    """A table with a row for each arm, and one for each pooled effect."""

    rows: tuple[tuple[str, int], ...]
    """Names and n."""
    columns: tuple[Column, ...]
    caption: tuple[str, ...]
    """Sentences on target, intervals and protocol."""


def check_table(file: Path) -> None:
    """Raise `UserError` for an unknown ending, and for a file that flowrace did not write."""
    mark = MARKS.get(file.suffix.lower())
    if mark is None:
        raise UserError(f"--table {file}: expected a file that ends in {', '.join(MARKS)}")
    try:
        head = file.read_text(encoding="utf-8", errors="replace")[:200] if file.exists() else mark
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if not head.startswith(mark):
        raise UserError(f"{file} already exists and is not a table of flowrace; give another file")


def write_table(report: RaceReport, file: Path, axes: Sequence[str] = ()) -> None:
    """Write the times to target and the speed-ups of a report; `axes` selects some of its axes.

    Raises `UserError` for a file that cannot be written.
    """
    check_table(file)
    table = table_of(report, axes)
    text = {".tex": to_latex, ".md": to_markdown, ".csv": to_csv}[file.suffix.lower()](table)
    try:
        write_atomic(file, text.encode())
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error


def table_of(report: RaceReport, axes: Sequence[str] = ()) -> FileTable:
    """Return the table of a report; raises `UserError` for an axis on which its runs are not compared."""
    race = report.race
    for axis in axes:
        if axis not in race.axes:
            raise UserError(f"--axes {axis}: these runs are compared on {', '.join(race.axes)} only")
    chosen = [axis for axis in race.axes if axis in axes or not axes]
    arms = [arm.label for arm in race.arms if any(label == arm.label for _, label in race.times)]
    pooled = report.objectives[1:] if report.across == "pooled" else ()
    rows = [(label, _n(race, label)) for label in arms]
    rows += [(f"{name}, pooled", _pooled_n(report, name)) for name in pooled]
    columns = []
    for axis in chosen:
        means = [race.times.get((axis, label)) for label in arms]
        columns.append(_time_column(axis, [*means, *(None for _ in pooled)]))
        gains = [race.speedups.get((axis, label)) for label in arms]
        effects = [report.pooled.get((axis, name)) for name in pooled]
        columns.append(_gain_column(axis, [*gains, *(effect and effect.gain for effect in effects)]))
    return FileTable(tuple(rows), tuple(columns), _caption(report))


def to_latex(table: FileTable) -> str:
    """Return a booktabs table, with its caption as comments."""
    head = " & ".join(["Arm", "$n$", *(_tex(column.heading) for column in table.columns)])
    # A name with a line end would continue outside the comment.
    lines = [f"% {' '.join(line.split())}" for line in table.caption]
    lines += ["\\begin{tabular}{l" + "r" * (len(table.columns) + 1) + "}", "\\toprule", head + r" \\"]
    lines.append("\\midrule")
    for index, (name, n) in enumerate(table.rows):
        cells = [_tex(_text(column, index)) for column in table.columns]
        lines.append(" & ".join([_tex(name), str(n), *cells]) + r" \\")
    return "\n".join([MARKS[".tex"], *lines, "\\bottomrule", "\\end{tabular}", ""])


def to_markdown(table: FileTable) -> str:
    """Return a Markdown table with its caption below."""
    head = ["Arm", "n", *(column.heading for column in table.columns)]
    lines = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
    for index, (name, n) in enumerate(table.rows):
        lines.append(_row([name, str(n), *(_text(column, index) for column in table.columns)]))
    return "\n".join([MARKS[".md"], "", *lines, "", *table.caption, ""])


def to_csv(table: FileTable) -> str:
    """Return CSV with a column each for value and ends of the interval; open ends are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [_name(column) for column in table.columns]
    ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    writer.writerow(["arm", "n", *ends])
    for index, (name, n) in enumerate(table.rows):
        numbers = [column.numbers[index] for column in table.columns]
        writer.writerow([inert(name), n, *(value for number in numbers for value in _values(number))])
    return text.getvalue()


def _time_column(axis: str, means: Sequence[MeanTime | None]) -> Column:
    known = [mean.estimate for mean in means if mean is not None]
    size, unit = column_unit(axis, known)
    numbers = [
        None
        if mean is None
        else Number(
            mean.estimate / size,
            None if mean.low is None else mean.low / size,
            None if mean.high is None else mean.high / size,
            mean.right == mean.n,
        )
        for mean in means
    ]
    form = (lambda value: f"{value:,.0f}") if axis == "steps" else digits
    return Column(AXIS_TITLES[axis], unit, tuple(numbers), form)


def _gain_column(axis: str, gains: Sequence[Speedup | None]) -> Column:
    numbers = [
        None if gain is None or gain.estimate is None else Number(gain.estimate, gain.low, gain.high)
        for gain in gains
    ]
    return Column(
        f"Speed-up, {AXIS_TITLES[axis].lower().replace('flops', 'FLOPs')}", "×", tuple(numbers), factor
    )


def _caption(report: RaceReport) -> tuple[str, ...]:
    race = report.race
    how = f" ({report.how_found})" if report.how_found else ""
    return (
        f"{race.name}: time to {report.goal or race.metric}{how}, speed-up over {race.reference}.",
        "Geometric means over seeds with Student's 95 % interval; > marks arms that never reached it.",
        *((f"Protocol: {report.race.protocol}.",) if report.race.protocol else ()),
    )


def _text(column: Column, index: int) -> str:
    number = column.numbers[index]
    if number is None:
        return "–"
    sign = "×" if column.unit == "×" else ""
    value = ("> " if number.bound else "") + column.form(number.value) + sign
    if number.low is None or number.high is None:
        return value
    left = "(0" if number.low == 0 else f"[{column.form(number.low)}"
    right = "∞)" if math.isinf(number.high) else f"{column.form(number.high)}]"
    return f"{value} {left}, {right}"


def _values(number: Number | None) -> list[float | str]:
    if number is None:
        return ["", "", ""]
    ends = [end if end and math.isfinite(end) else "" for end in (number.low, number.high)]
    return [number.value, *ends]


def _name(column: Column) -> str:
    words = column.title.lower().replace(", ", "_").replace("speed-up", "speedup").replace(" ", "_")
    return words if column.unit in ("", "×") else f"{words}_{column.unit.replace('-', '_')}"


def _n(race: Race, label: str) -> int:
    return next(time.n for (_, arm), time in race.times.items() if arm == label)


def _pooled_n(report: RaceReport, name: str) -> int:
    return next((effect.gain.n for (_, own), effect in report.pooled.items() if own == name), 0)


def _row(cells: Sequence[str]) -> str:
    # A line end in a name would end the row.
    lines = [" ".join(cell.split()) for cell in cells]
    escaped = [cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for cell in lines]
    return f"| {' | '.join(escaped)} |"


TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "∞": r"$\infty$",
    "–": "--",
}
"""Characters that LaTeX would not print as they are."""


def _tex(text: str) -> str:
    return "".join(TEX.get(letter, letter) for letter in " ".join(text.split()))
