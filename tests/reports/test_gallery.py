"""The gallery of committed studies: its numbers are those of the CSV files, and its text is inert."""

from __future__ import annotations

import csv
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import UserError
from reports.analysis.rows import ARM_COLUMNS
from reports.gallery import printed_claims
from reports.gallery.printed_claims import printed_of
from reports.gallery.site import Card, render, write_gallery
from reports.gallery.study import read_studies, read_study
from reports.gallery.thumbnail import MOST_POINTS, RIGHT, WIDTH, draw_curves
from reports.literature.database import load_literature
from reports.logs.curves import LogCurve, LogPoint
from tests.conftest import ROOT

RESULTS = ROOT / "benchmarks" / "results"
NAMES = sorted(file.parent.name for file in RESULTS.glob("*/gallery.toml"))
INERT = "<script>window.broken = 1</script>"
ABOUT = """title = "Two arms"
question = "Which is first?"
data = "noise"
scale = "small"
command = "flowrace sweep two"
"""
ARMS = f"""{",".join(ARM_COLUMNS)}
steps,flow,flow,fid,40.0,3,625.0,600,650,0,0,,,,,,,,,
steps,repa,flow,fid,40.0,3,400.0,390,410,0,0,1.5625,1.4511,1.6789,3,True,0,0,0.5,faster
steps,sra,flow,fid,40.0,3,900.0,,,3,0,,,0.7,3,True,0,3,,slower
flops,flow,flow,fid,40.0,3,1e12,,,0,0,,,,,,,,,
flops,repa,flow,fid,40.0,3,2e12,,,0,0,0.5,0.45,0.55,3,True,0,0,0.5,slower
"""


def curves() -> str:
    """Return curves that reach 40 at step 625 (flow) and 400 (repa)."""
    rows = ["method,seed,step,metric,value,images,flops,seconds"]
    for seed in range(3):
        for method, scale in (("flow", 1000.0), ("repa", 800.0)):
            for step in range(100, 2001, 100):
                value = scale * step**-0.5 * (1 + 0.001 * seed)
                rows.append(f"{method},{seed},{step},fid,{value:.6f},{8 * step},{step}e6,{step}")
    return "\n".join(rows) + "\n"


def study(root: Path, **files: str) -> Path:
    """Write the folder of a study `two`, whose files can be replaced."""
    folder = root / "two"
    folder.mkdir(parents=True)
    names = {"about": "gallery.toml", "arms": "two.csv"}
    for name, text in ({"about": ABOUT, "arms": ARMS} | files).items():
        (folder / names.get(name, f"{name}.csv")).write_text(text)
    return folder


class Links(HTMLParser):
    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[Path] = []
        self.page = page
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href") or dict(attrs).get("src")
        if target is not None:
            assert "//" not in target, f"{self.page} refers to {target}"
            self.found.append(self.page.parent / target)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_verdict_is_in_the_csv(name: str) -> None:
    """Recomputed from the CSV: speed-ups with two decimals, counts of comparisons, pairs and runs."""
    with open(RESULTS / name / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(RESULTS / name / f"{name}-runs.csv", newline="") as file:
        runs = len(list(csv.DictReader(file)))
    card = Card(read_study(RESULTS / name))
    assert card.verdict
    for sentence in card.verdict:
        axis = {"steps": "steps", "FLOPs": "flops"}[sentence.split()[1].rstrip(":")]
        own = [row for row in rows if row["axis"] == axis and row["pairs"]]
        stated = re.findall(r"(\d+\.\d\d)× \[(\d+\.\d\d), (\d+\.\d\d|∞)[\])]", sentence)
        known = {
            tuple(f"{float(row[key]):.2f}" if row[key] else "∞" for key in COLUMNS)
            for row in own
            if row["speedup"]
        }
        assert set(stated) <= known
        if name != "joint-bounce":
            assert f"({len(own)} comparison" in sentence
            slower = sum(row["direction"] == "slower" for row in own)
            assert (f"{slower} slower" in sentence) == (slower > 0)
            assert len(stated) == min(3, sum(row["direction"] == "faster" for row in own))
        assert f"n = {own[0]['pairs']} pairs" in sentence
    assert card.cost.startswith(f"{runs} runs")


COLUMNS = ("speedup", "speedup_low", "speedup_high")


def test_arms_of_other_cells_are_not_compared() -> None:
    """An old table compares every weight of video and sound with the baseline at one weight."""
    table = read_study(RESULTS / "joint-bounce").main
    assert {row.objective for row in table.compared("steps")} == {"sra", "self_flow"}
    assert all("audio_weight = 0.66" in row.method for row in table.compared("steps"))


def test_settings_of_the_baselines_method_are_no_cell(tmp_path: Path) -> None:
    label = "flow (guidance = 2)"
    table = read_study(study(tmp_path, arms=ARMS.replace(",flow,fid", f",{label},fid"))).main
    assert [row.method for row in table.compared("steps")] == ["repa", "sra"]


def test_thumbnail_of_many_long_curves_keeps_every_method_and_the_last_point_and_counts_the_runs() -> None:
    def curve(method: str, seed: int) -> LogCurve:
        points = tuple(LogPoint(step, 1000.0 / step, "") for step in range(1, 200))
        return LogCurve(method, seed, "fid", points, "file")

    runs = [curve(method, seed) for method in ("flow", "repa") for seed in range(100)]
    drawn = draw_curves(runs, None, "fid")
    assert drawn is not None and drawn.caption == "fid against steps, 80 of 200 runs"
    paths = re.findall(r'class="arm(\d)" points="([^"]*)"', drawn.svg)
    assert [method for method, _ in paths].count("1") == 40
    assert {path.split()[-1].split(",")[0] for _, path in paths} == {f"{WIDTH - RIGHT:.1f}"}
    assert max(len(path.split()) for _, path in paths) <= MOST_POINTS + 1


def test_caption_follows_the_drawing(tmp_path: Path) -> None:
    study(tmp_path, curves="\n".join(curves().splitlines()[:2]) + "\n")
    page = render([Card(one) for one in read_studies(tmp_path)])["index.html"]
    assert "<polyline" not in page and "Speed-ups in steps with 95 % intervals. Target" in page


def test_printed_pair_is_that_of_the_longest_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repa = next(
        one for one in load_literature().numbers if one.arm == "repa" and one.dataset == "ImageNet-256"
    )
    common = {"paper": "P", "dataset": "noise", "measure": "FID", "value": 5.0}
    numbers = [
        repa.model_copy(update={**common, "arm": arm, "network": network, "steps": steps})
        for network, steps in (("SiT-B/2", 4_000_000), ("SiT-XL/2", 400_000))
        for arm in ("repa", "flow")
    ]
    monkeypatch.setattr(
        printed_claims, "load_literature", lambda: SimpleNamespace(numbers=numbers, ratios=[])
    )
    about = ABOUT + 'published = { dataset = "noise", metric = "FID" }'
    (found,) = printed_of(read_study(study(tmp_path, about=about)))
    assert "at 4M steps" in found.text


def test_gallery_of_the_repository_has_every_study_and_no_broken_link(tmp_path: Path) -> None:
    pages = write_gallery(RESULTS, tmp_path)
    assert [page.name for page in pages[:1]] == ["index.html"] and len(pages) == len(NAMES) + 1
    for page in pages:
        missing = [str(link) for link in Links(page).found if not link.exists()]
        assert missing == []
    index = pages[0].read_text()
    assert all(f'id="{name}"' in index for name in NAMES) and "17.5× fewer steps" in index


def test_a_study_with_curves_has_a_report_and_its_curves_on_the_card(tmp_path: Path) -> None:
    folder = study(tmp_path / "in", curves=curves())
    (folder / "claim.toml").write_text(
        '[claim]\nname = "faster"\ncandidate = "repa"\nbaseline = "flow"\nmetric = "fid"\ntarget = 40.0\n'
        "factor = 1.2\n"
    )
    write_gallery(tmp_path / "in", tmp_path / "out")
    report = (tmp_path / "out" / "two" / "report.html").read_text()
    assert "fid ≤ 40" in report and "SUPPORTED" in report.upper()
    index = (tmp_path / "out" / "index.html").read_text()
    assert index.count("<polyline") == 6 and 'href="two/report.html"' in index


def test_a_study_without_curves_shows_its_intervals(tmp_path: Path) -> None:
    study(tmp_path)
    index = render([Card(one) for one in read_studies(tmp_path)])["index.html"]
    assert "<polyline" not in index and index.count("<circle") == 1
    assert "1.56× [1.45, 1.68]" in index and "no estimate (0, 0.70], never reached" in index
    assert "flow needs 625 steps and 1.00 TFLOP to the target" in index


def test_text_of_a_study_is_escaped(tmp_path: Path) -> None:
    about = ABOUT.replace("Two arms", INERT).replace("noise", f"{INERT} & noise")
    runs = f"method,seed,run,status,final,censored,steps\n{INERT},0,{INERT},{INERT},{INERT},,{INERT}\n"
    finals = f"metric,method,step,n,mean,low,high\n{INERT},{INERT},{INERT},3,{INERT},{INERT},{INERT}\n"
    files = {"two-runs": runs, "two-finals": finals}
    folder = study(tmp_path, about=about, arms=ARMS.replace("repa,", f"{INERT},"), **files)
    card = Card(read_study(folder))
    for page in render([card]).values():
        assert INERT not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"about": ABOUT.replace("title", "titel")}, "gallery.toml: title: Field required"),
        ({"about": ABOUT + 'more = "x"'}, "more: Extra inputs"),
        ({"about": "title = "}, "is not TOML"),
        ({"arms": ARMS.replace("axis,", "axes,")}, "has columns that no report writes"),
        ({"arms": ARMS.splitlines()[0] + "\n"}, "has no arms"),
        ({"arms": ARMS.replace("625.0", "many")}, "could not convert string to float"),
        ({"other": "a,b\n1,2\n"}, "has columns that no report writes: a, b"),
        ({"two-runs": "method,seed,run,status,final\n"}, "has columns that no report writes: method, seed"),
        ({"two-finals": "metric,method,step,n,mean,sd\n"}, "has columns that no report writes: metric"),
        (
            {"arms": ARMS.replace(",flow,fid", ",flow (data = words),fid")},
            "no arm with a baseline of the",
        ),
    ],
    ids=["field", "extra", "toml", "columns", "empty", "number", "unknown file", "runs", "finals", "cells"],
)
def test_a_broken_study_is_named_before_anything_is_written(
    files: dict[str, str], message: str, tmp_path: Path
) -> None:
    study(tmp_path / "in", **files)
    with pytest.raises(UserError, match=re.escape(message)):
        write_gallery(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_studies_is_refused(tmp_path: Path) -> None:
    folder = study(tmp_path)
    shutil.move(folder / "two.csv", tmp_path / "two.csv")
    with pytest.raises(UserError, match=r"has no two\.csv"):
        read_studies(tmp_path)
    (folder / "gallery.toml").unlink()
    with pytest.raises(UserError, match="no study in"):
        read_studies(tmp_path)
