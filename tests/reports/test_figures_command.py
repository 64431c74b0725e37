"""The command `flowrace figures`: formats, reproducible bytes, and no files after an invalid option."""

from __future__ import annotations

import json
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
