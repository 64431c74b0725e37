"""Tables as files: one unit per column, intervals, n, escapes, and files that are not replaced."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.errors import UserError
from reports.analysis.report import read_report
from reports.cli.report import report as command
from reports.pages.table_files import table_of, to_csv, to_latex, to_markdown, write_table
from tests.reports.rates_study import write_study
from tests.reports.synthetic import PHASES, power_law, write_run

SLOW = {name: 400 * value for name, value in PHASES.items()}


def race(folder: Path) -> Path:
    """Write arms whose steps take 0.0235 and 9.4 s: 1000 steps are 23.5 s and 2.6 h."""
    for seed in range(3):
        for method, phases in (("flow", PHASES), ("repa", SLOW)):
            curve = power_law(1000.0 * 1.01**seed, 0.5)
            write_run(folder / f"{method}-{seed}", method, seed, metric=curve, phases=phases)
    return folder


def test_a_column_has_one_unit_and_no_cell_another(tmp_path: Path) -> None:
    """The geometric mean of 24 s and 2.6 h is 8 min."""
    table = table_of(read_report([race(tmp_path)], target=31.0), ["seconds"])
    time, gain = table.columns
    assert time.heading == "Training time (min)" and gain.heading == "Speed-up, training time"
    own = read_report([tmp_path], target=31.0).race.times["seconds", "repa"].estimate
    assert [number.value for number in time.numbers][1] == pytest.approx(own / 60)
    text = to_markdown(table)
    assert not re.search(r"[0-9] (s|h|min|ms)\\b", text)


def test_latex_is_a_booktabs_table_whose_rows_have_all_columns(tmp_path: Path) -> None:
    names = {"repa": "R&D_100%"}
    lines = to_latex(table_of(read_report([race(tmp_path)], target=31.0, labels=names))).splitlines()
    assert lines[0] == "% flowrace table" and "\\toprule" in lines and "\\bottomrule" in lines
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 3 and {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {9}
    assert rows[2].startswith(r"R\&D\_100\%") and "$\\times$" in rows[2] and "×" not in "".join(rows)


def test_csv_has_value_and_ends_in_columns_of_their_own(tmp_path: Path) -> None:
    report = read_report([race(tmp_path)], target=31.0)
    rows = list(csv.DictReader(io.StringIO(to_csv(table_of(report, ["steps"])))))
    assert list(rows[0]) == [
        "arm", "n", "steps", "steps_low", "steps_high",
        "speedup_steps", "speedup_steps_low", "speedup_steps_high",
    ]  # fmt: skip
    gain = report.race.speedups["steps", "repa"]
    assert float(rows[1]["speedup_steps"]) == pytest.approx(gain.estimate) and rows[0]["speedup_steps"] == ""
    assert [row["n"] for row in rows] == ["3", "3"]


def test_arm_that_never_reached_the_target_is_marked_as_a_bound(tmp_path: Path) -> None:
    text = to_markdown(table_of(read_report([race(tmp_path)], target=1.0), ["steps"]))
    assert "&lt;" not in text and "> 2,000" in text


def test_table_of_a_study_with_cells_ends_with_the_pooled_effects(tmp_path: Path) -> None:
    report = read_report([write_study(tmp_path)])
    table = table_of(report, ["steps"])
    assert [name for name, _ in table.rows[-2:]] == ["repa, pooled", "sra, pooled"] and table.rows[-1][1] == 3
    pooled = report.pooled["steps", "repa"].gain
    assert table.columns[1].numbers[-2].value == pooled.estimate
    assert math.isclose(table.columns[1].numbers[-2].low, pooled.low)


@pytest.mark.usefixtures("undrawn")
def test_report_writes_tables_and_replaces_only_its_own(tmp_path: Path) -> None:
    runs, page = race(tmp_path / "runs"), tmp_path / "report.html"
    files = [tmp_path / f"times{ending}" for ending in (".tex", ".md", ".csv")]
    words = [str(runs), "-o", str(page), "--target", "31", "--axes", "steps,flops"]
    words += [word for file in files for word in ("--table", str(file))]
    printed = CliRunner().invoke(command, words, catch_exceptions=False).output.splitlines()
    assert printed[-4:] == [*map(str, files), str(page)]
    before = [file.read_bytes() for file in files]
    CliRunner().invoke(command, words, catch_exceptions=False)
    assert [file.read_bytes() for file in files] == before
    files[0].write_text("\\documentclass{article}")
    with pytest.raises(UserError, match="already exists and is not a table of flowrace"):
        CliRunner().invoke(command, words, catch_exceptions=False)


def test_table_names_unknown_endings_and_axes(tmp_path: Path) -> None:
    report = read_report([race(tmp_path)], target=31.0)
    with pytest.raises(UserError, match=r"expected a file that ends in .tex, .md, .csv"):
        write_table(report, tmp_path / "table.docx")
    with pytest.raises(UserError, match="--axes gpu_seconds: these runs are compared on steps, images"):
        table_of(report, ["gpu_seconds"])
    with pytest.raises(UserError, match=r"unknown axis 'step'.*Did you mean 'steps'"):
        CliRunner().invoke(command, [str(tmp_path), "--axes", "step"], catch_exceptions=False)
