"""The folder of a committed study: `gallery.toml` and the CSV files of its report.

    <name>/
        gallery.toml        what the CSV files do not have: title, question, data, scale, command
        <name>.csv          the arms of its report (`flowrace report -o <name>.html` writes these three)
        <name>-runs.csv     its runs
        <name>-finals.csv   its values at the last step
        <other>.csv         the arms of the same runs with another metric or target, and so on
        <curves>.csv        tidy curves (`method,seed,step,metric,value,...`), from which a report is made
        claim*.toml         claims to audit on the curves

All but `gallery.toml` and `<name>.csv` are optional. CSV files are recognised by their columns.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.config.spec import RunSpec
from harness.errors import UserError
from harness.files.csv_cells import plain
from harness.files.files import read_text, read_toml
from harness.files.names import check_name
from reports.logs.tables import COLUMNS as CURVE_COLUMNS
from reports.stats.number_format import digits
from reports.stats.speedup import Speedup

FILE = "gallery.toml"
LARGEST = 64 * 2**20
"""Most bytes of a CSV file."""
ARMS = ("axis", "method", "baseline", "metric", "target", "n", "time")
RUNS = ("method", "seed", "run", "status", "final", "censored", "steps")
FINALS = ("metric", "method", "step", "n", "mean", "low", "high")
SECTIONS = RunSpec.model_fields.keys() - {"method"}
"""Tables of a spec whose settings are those of a cell; labels name settings of a method without its table."""
Row = Mapping[str, str]


class PublishedFilter(BaseModel):
    """The published numbers that are shown next to the measured ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    dataset: str
    metric: str


class GalleryFile(BaseModel):
    """The content of `gallery.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    title: str = Field(min_length=1, max_length=120)
    question: str = Field(min_length=1, max_length=400)
    data: str = Field(min_length=1, max_length=120)
    scale: str = Field(min_length=1, max_length=200)
    command: str = Field(min_length=1, max_length=400)
    note: str = Field("", max_length=1000)
    published: PublishedFilter | None = None


@dataclass(frozen=True)
class ArmRow:
    """An arm on one axis: its time to target, and its speed-up over the baseline if it was compared."""

    axis: str
    method: str
    baseline: str
    n: int
    time: float
    not_reached: int
    gain: Speedup | None

    @property
    def objective(self) -> str:
        """The label without the settings in which cells or arms differ."""
        return objective(self.method)

    @property
    def in_one_cell(self) -> bool:
        """True if the arm has all settings of a cell that the label of its baseline names."""
        return set(cell_settings(self.baseline)) <= set(settings(self.method))


@dataclass(frozen=True)
class ArmTable:
    """One CSV file of arms: a metric and a target."""

    file: Path
    metric: str
    targets: tuple[float, ...]
    """All targets: cells of a study may have different ones."""
    rows: tuple[ArmRow, ...]
    runs: tuple[Row, ...] = ()
    """The rows of the file of runs next to it; empty without one."""

    @property
    def goal(self) -> str:
        if len(self.targets) == 1:
            return f"{self.metric} ≤ {digits(self.targets[0])}"
        return f"{self.metric}, with a target for each cell"

    @property
    def axes(self) -> list[str]:
        return list(dict.fromkeys(row.axis for row in self.rows))

    def compared(self, axis: str) -> list[ArmRow]:
        """Return the arms with a speed-up, the fastest first; those without an estimate come last.

        Arms of another cell than their baseline, which tables of versions up to 0.1 compare too, are left
        out: they differ in more than the objective.
        """
        rows = [row for row in self.rows if row.axis == axis and row.gain is not None and row.in_one_cell]
        return sorted(rows, key=lambda row: -_factor(row))

    def baselines(self, axis: str) -> list[ArmRow]:
        """Return the arms that others are compared with: one for each cell."""
        return [row for row in self.rows if row.axis == axis and row.gain is None]


@dataclass(frozen=True)
class GalleryStudy:
    """A committed study."""

    folder: Path
    about: GalleryFile
    tables: tuple[ArmTable, ...]
    """The main one first."""
    finals: tuple[Row, ...]
    curves: Path | None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def main(self) -> ArmTable:
        return self.tables[0]

    @property
    def claims(self) -> list[Path]:
        return sorted(self.folder.glob("claim*.toml"))

    @property
    def has_reading(self) -> bool:
        """True if a reading in words is next to the folder: `<name>.md`."""
        return self.folder.with_name(f"{self.name}.md").is_file()

    @cached_property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.csv"))


def objective(label: str) -> str:
    """Return an arm's label without its settings.

    >>> objective("repa (encoder = local:base)")
    'repa'
    """
    return label.partition(" (")[0]


def settings(label: str) -> list[str]:
    """Return the settings that an arm's label names.

    >>> settings("repa (encoder = local:base, layer = 2)")
    ['encoder = local:base', 'layer = 2']
    """
    return [part for part in label.partition(" (")[2].removesuffix(")").split(", ") if part]


def cell_settings(label: str) -> list[str]:
    """Return the settings outside the method's table that an arm's label names.

    >>> cell_settings("repa (layer = 2, backbone.size = S)")
    ['backbone.size = S']
    """
    return [one for one in settings(label) if one.partition(" = ")[0].partition(".")[0] in SECTIONS]


def read_studies(root: Path) -> list[GalleryStudy]:
    """Return the studies in the folders of a folder, those with the most runs first."""
    studies = [read_study(file.parent) for file in sorted(root.glob(f"*/{FILE}"))]
    if not studies:
        raise UserError(f"no study in {root}: a study is a folder with a {FILE}")
    return sorted(studies, key=lambda study: (-len(study.main.runs), study.name))


def read_study(folder: Path) -> GalleryStudy:
    """Return the study in a folder. Raises `UserError`, which names the file, for one that is broken."""
    check_name(folder.name, f"{folder}: the name of the folder")
    about = _about(folder / FILE)
    main = folder / f"{folder.name}.csv"
    if not main.is_file():
        raise UserError(f"{folder} has no {main.name}; write it with flowrace report -o {main.stem}.html")
    tables, finals, curves = [], [], []
    for file in sorted(folder.glob("*.csv"), key=lambda file: (file != main, file.name)):
        columns, rows = _read(file)
        if set(ARMS) <= set(columns):
            tables.append(_arm_table(file, rows))
        elif set(CURVE_COLUMNS) <= set(columns):
            curves.append(file)
        elif set(FINALS) <= set(columns):
            finals += rows
        elif not set(RUNS) <= set(columns):
            raise UserError(f"{file} has columns that no report writes: {', '.join(columns[:8])}")
    if not tables or tables[0].file != main:
        raise UserError(f"{main} is no table of arms: expected the columns {', '.join(ARMS)}")
    return GalleryStudy(folder, about, tuple(tables), tuple(finals), curves[0] if curves else None)


def _about(file: Path) -> GalleryFile:
    try:
        return GalleryFile.model_validate(read_toml(file))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{file}: {place}: {first['msg']}") from error


def _read(file: Path) -> tuple[list[str], list[Row]]:
    if file.stat().st_size > LARGEST:
        raise UserError(f"{file} has more than {LARGEST:,} bytes; leave out some of its rows")
    reader = csv.DictReader(io.StringIO(read_text(file)))
    try:
        rows: list[Row] = [{str(k): plain(cell or "") for k, cell in row.items() if k} for row in reader]
    except csv.Error as error:
        raise UserError(f"{file} is no CSV: {error}") from error
    return list(reader.fieldnames or []), rows


def _arm_table(file: Path, rows: Sequence[Row]) -> ArmTable:
    if not rows:
        raise UserError(f"{file} has no arms; a study of the gallery has a target that was reached")
    try:
        arms = tuple(map(_arm, rows))
        targets = tuple(dict.fromkeys(float(row["target"]) for row in rows))
    except ValueError as error:
        raise UserError(f"{file}: {error}; write it again with flowrace report") from error
    compared = [arm for arm in arms if arm.gain is not None]
    if compared and not any(arm.in_one_cell for arm in compared):
        raise UserError(
            f"{file} compares no arm with a baseline of the same cell: {compared[0].method} with "
            f"{compared[0].baseline}; write it again with flowrace report"
        )
    runs = file.with_name(f"{file.stem}-runs.csv")
    return ArmTable(file, rows[0]["metric"], targets, arms, tuple(_read(runs)[1]) if runs.is_file() else ())


def _arm(row: Row) -> ArmRow:
    gain = _gain(row) if row.get("pairs") else None
    return ArmRow(
        row["axis"],
        row["method"],
        row["baseline"],
        int(row["n"]),
        float(row["time"]),
        int(row.get("not_reached") or 0),
        gain,
    )


def _gain(row: Row) -> Speedup:
    """Return the speed-up of a row, whose open ends are empty cells."""
    pairs = int(row["pairs"])
    estimate, low, high = (_number(row.get(f"speedup{end}")) for end in ("", "_low", "_high"))
    # One pair has no interval, and an interval has at least one closed end.
    if low is not None or high is not None:
        low, high = 0.0 if low is None else low, math.inf if high is None else high
    elif estimate is not None and pairs > 1:
        low, high = 0.0, math.inf
    censored = (int(row.get(f"censored_{side}") or 0) for side in ("baseline", "candidate"))
    paired = row.get("paired", "True") != "False"
    return Speedup(estimate, low, high, pairs, paired, *censored, correlation=_number(row.get("correlation")))


def _number(cell: str | None) -> float | None:
    return float(cell) if cell else None


def _factor(row: ArmRow) -> float:
    if row.gain is None or row.gain.estimate is None:
        return 0.0
    return row.gain.estimate
