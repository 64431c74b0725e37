"""The command `flowrace figures`: formats, reproducible bytes, and no files after an invalid option."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.errors import UserError
from reports.cli.figures import figures
from tests.reports.synthetic import write_race


@pytest.mark.slow
def test_figures_writes_reproducible_pdf_and_svg(tmp_path: Path) -> None:
    race = write_race(tmp_path / "race", {"flow": 1, "repa": 1.4}, seeds=2, grid=range(200, 2001, 300))
    written = []
    for output in ("a", "b"):
        words = [str(race), "-o", str(tmp_path / output), "--format", "pdf,svg", "--target", "40"]
        printed = CliRunner().invoke(figures, words, catch_exceptions=False).output.split()
        files = sorted((tmp_path / output).iterdir())
        assert sorted(printed) == [str(file) for file in files] and len(files) == 2 * (4 + 4 + 4 + 2)
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1]
    for name, content in written[0].items():
        assert content.startswith(b"%PDF" if name.endswith("pdf") else b"<?xml")
    assert b"fd:local" in written[0]["convergence-steps-narrow.svg"]


def test_figures_json_lists_every_file_of_a_study_with_cells(tmp_path: Path) -> None:
    for size in ("nano", "S"):
        write_race(
            tmp_path / "race" / size,
            {"flow": 1, "repa": 1.4},
            seeds=2,
            grid=range(200, 2001, 300),
            set_={"backbone.size": size},
        )
    words = [
        str(tmp_path / "race"),
        "-o",
        str(tmp_path / "out"),
        "--format",
        "svg",
        "--json",
        "--published",
        "repa",
    ]
    output = json.loads(CliRunner().invoke(figures, words, catch_exceptions=False).output)
    files = [Path(file) for file in output["figures"]]
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    assert {"cells-steps-narrow.svg", "profile-flops-narrow.svg", "published-0-narrow.svg"} <= {
        f.name for f in files
    }
    assert output["metric"] == "fd:local" and "flow" in output["baseline"]


def test_figures_writes_nothing_when_format_is_unknown(tmp_path: Path) -> None:
    race = write_race(tmp_path / "race", {"flow": 1}, seeds=1, grid=(10, 20))
    with pytest.raises(UserError, match="unknown format 'png'"):
        words = [str(race), "-o", str(tmp_path / "out"), "--format", "pdf,png"]
        CliRunner().invoke(figures, words, catch_exceptions=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "inches"),
    [
        (["--style", "icml"], 3.25),
        pytest.param(["--style", "icml", "--width", "text"], 6.75, marks=pytest.mark.slow),
        (["--style", "cvpr", "--width", "text"], 6.875),
        pytest.param(["--style", "neurips"], 5.5, marks=pytest.mark.slow),
    ],
)
def test_figures_have_the_width_of_the_venue_and_a_legend_of_every_arm(
    tmp_path: Path, words: list[str], inches: float
) -> None:
    """SVG has 72 points per inch; the text of the legend is text."""
    race = write_race(tmp_path / "race", {"flow": 1, "repa": 1.4}, seeds=2, grid=range(200, 2001, 600))
    out = tmp_path / "out"
    words = [str(race), "-o", str(out), "--format", "svg", "--target", "60", *words]
    assert CliRunner().invoke(figures, words, catch_exceptions=False).exit_code == 0
    for file in out.iterdir():
        text = file.read_text()
        assert float(re.search(r'<svg[^>]* width="([0-9.]+)pt"', text)[1]) == pytest.approx(72 * inches)
        assert "STIXGeneral" in text and 'id="legend_1"' in text, file.name
    curves = next(out.glob("convergence-steps-*.svg")).read_text()
    for name in (
        "flow",
        "repa",
        "one seed, as measured",
        "mean fit, 95 % interval",
        "time to target of a seed",
    ):
        assert f">{name}<" in curves, name
    assert ">student<" in next(out.glob("cost-*.svg")).read_text()


def test_font_and_size_of_figures_are_those_asked_for(tmp_path: Path) -> None:
    race = write_race(tmp_path / "race", {"flow": 1}, seeds=1, grid=(10, 20))
    words = [str(race), "-o", str(tmp_path / "out"), "--format", "svg"]
    look = ["--font", "DejaVu Serif", "--font-size", "7"]
    assert CliRunner().invoke(figures, [*words, *look], catch_exceptions=False).exit_code == 0
    text = (tmp_path / "out" / "convergence-steps-narrow.svg").read_text()
    assert "font-size: 7px; font-family: 'DejaVu Serif'" in text
    with pytest.raises(UserError, match=r"unknown font 'DejaVu Serf'.*Did you mean 'DejaVu Serif'"):
        CliRunner().invoke(figures, [*words, "--font", "DejaVu Serf"], catch_exceptions=False)
    assert CliRunner().invoke(figures, [*words, "--font-size", "99"]).exit_code == 2


def test_figures_of_pages_have_no_legend_because_the_page_has_one(tmp_path: Path) -> None:
    from reports.figures.race_figures import draw_convergence
    from reports.race.race import read_race

    race = read_race([write_race(tmp_path, {"flow": 1, "repa": 1.4}, seeds=2)])
    assert not draw_convergence(race, "steps", 7.6).figure.legends
