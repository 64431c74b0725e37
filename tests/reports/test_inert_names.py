"""Names of strangers are inert wherever they are written: cells of CSV files, LaTeX and Markdown."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from harness.files.csv_cells import FORMULA, inert, plain
from reports.analysis.report import read_report
from reports.cli.logs import tidy
from reports.logs.log_map import LogMap
from reports.logs.tables import read_csv
from reports.pages.table_files import table_of, to_csv, to_latex, to_markdown
from tests.reports.synthetic import write_race
from tests.support.commands import flowrace

HOSTILE = '=HYPERLINK("http://x","y")'
NAMES = (HOSTILE, "+1+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_race(tmp_path_factory.mktemp("runs"), {"flow": 1.0, HOSTILE: 2.0}, seeds=2)


def cells(text: str) -> list[str]:
    return [cell for row in csv.reader(io.StringIO(text)) for cell in row]


def runs_as_formula(cell: str) -> bool:
    """Return whether a spreadsheet would take a cell for a formula (OWASP); a number is none."""
    return cell.startswith(FORMULA) and re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", cell) is None


@pytest.mark.parametrize("name", NAMES)
def test_cell_is_no_formula_and_is_read_back(name: str) -> None:
    assert runs_as_formula(name) and not runs_as_formula(inert(name)) and plain(inert(name)) == name
    assert inert("-0.5") == "-0.5" and inert(-0.5) == -0.5 and inert("repa") == "repa"


@pytest.mark.parametrize("name", [*NAMES, "repa", "-0.5", "tis"])
def test_names_that_begin_with_apostrophes_have_cells_of_their_own(name: str) -> None:
    names = [f"{marks}{name}" for marks in ("", "'", "''")]
    made = [inert(one) for one in names]
    assert len(set(made)) == len(names) and list(map(plain, made)) == names


@pytest.mark.usefixtures("undrawn")
def test_no_csv_of_a_report_or_an_export_has_a_formula(runs: Path, tmp_path: Path) -> None:
    page, table = tmp_path / "r.html", tmp_path / "t.csv"
    result = flowrace("report", runs, "-o", page, "--target", "30", "--table", table)
    assert result.exit_code == 0, result.output
    texts = [file.read_text() for file in tmp_path.glob("*.csv")]
    texts += [flowrace("export", runs).stdout, flowrace("export", runs, "--table", "training").stdout]
    exported = tmp_path / "x.csv"
    assert flowrace("export", runs, "--table", "evaluations", "-o", exported).exit_code == 0
    texts.append(exported.read_text())
    assert len(texts) == 7
    assert all(f"'{HOSTILE}" in cells(text) for text in texts)
    assert not [cell for text in texts for cell in cells(text) if runs_as_formula(cell)]


def test_curves_of_a_hostile_name_are_written_inert_and_read_back(tmp_path: Path) -> None:
    file, again = tmp_path / "a.csv", tmp_path / "b.csv"
    with open(file, "w", newline="") as out:
        csv.writer(out).writerows(
            [
                ["method", "seed", "step", "metric", "value", "protocol"],
                [HOSTILE, 0, 1, "fid", 2.0, HOSTILE],
                [HOSTILE, 0, 2, "fid", 1.0, HOSTILE],
            ]
        )
    again.write_text(tidy(read_csv(file, LogMap())))
    assert not any(map(runs_as_formula, cells(again.read_text())))
    (curve,) = read_csv(again, LogMap()).curves
    assert curve.method == HOSTILE and {point.protocol for point in curve.points} == {HOSTILE}


def test_table_of_hostile_names_has_no_line_or_command_of_theirs(runs: Path) -> None:
    shown = "\\input{/etc/passwd}\n\\end{tabular}%<script>|"
    table = table_of(read_report([runs], target=30.0, labels={HOSTILE: shown}))
    latex = to_latex(table).splitlines()
    commands = {r"\begin", r"\end", r"\toprule", r"\midrule", r"\bottomrule", r"\textbackslash"}
    printed = [line for line in latex if not line.startswith("%")]
    found = {name for line in printed for name in re.findall(r"\\[a-zA-Z]+", line)}
    assert found <= commands | {r"\times", r"\infty", r"\leq", r"\textless", r"\textgreater"}
    assert all(line.startswith(("%", "\\", "Arm", "flow", r"\textbackslash{}")) for line in latex)
    markdown = to_markdown(table)
    assert "<script>" not in markdown
    assert {
        line.count("|") - line.count("\\|") for line in markdown.splitlines() if line.startswith("|")
    } == {len(table.columns) + 3}
    assert not any(map(runs_as_formula, cells(to_csv(table))))


@pytest.mark.slow
def test_files_of_figures_have_no_name_of_a_stranger(runs: Path, tmp_path: Path) -> None:
    result = flowrace(
        "figures", runs, "-o", tmp_path / "figures", "--target", "30", "--labels", f"flow={'../' * 9}x"
    )
    assert result.exit_code == 0, result.output
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files and all(re.fullmatch(r"[a-z0-9-]+\.pdf", file.name) for file in files)
    assert {file.parent for file in files} == {tmp_path / "figures"}
