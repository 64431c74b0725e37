"""The page and its CSV files: valid HTML, complete content, equal bytes, hostile texts, and the command."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from harness.errors import UserError
from harness.evaluation.sample_grid import png
from reports.cli.report import report as command
from reports.figures.strips import log_ticks
from reports.pages.page import WrittenReport, write_report
from reports.pages.samples import samples_of, spread
from reports.stats.number_format import quantity
from tests.reports.synthetic import write_picture, write_race, write_run

VOID = {"meta", "img", "input", "br", "link", "hr"}
HOSTILE = '<script>alert("x")</script> $\\frac{1}{ & \u2028'


class Page(HTMLParser):
    """Tags, attributes and text of a page; tags must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags[tag] += 1
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "src", "action", "data", "xmlns")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("race")
    write_race(folder, {"flow": 1, "self_flow": 1.6}, grid=range(200, 2001, 200), pictures=True)
    for seed in range(3):
        set_ = {"method.encoder.name": "local:small"}
        write_run(
            folder / f"repa-{seed}", "repa", seed, set_=set_, metric=lambda s: 900 * s**-0.5, pictures=True
        )
    write_run(folder / "failed", "repa", 3, set_=set_, status="failed")
    return folder


@pytest.fixture(scope="module")
def done(race: Path, tmp_path_factory: pytest.TempPathFactory) -> WrittenReport:
    return write_report([race], tmp_path_factory.mktemp("out") / "report.html", target=25)


@pytest.fixture(scope="module")
def html(done: WrittenReport) -> str:
    return done.html.read_text()


def test_page_is_complete_and_self_contained(html: str) -> None:
    page = Page(html)
    assert len(page.ids) == len(set(page.ids)) > 50
    assert page.tags["link"] == page.tags["iframe"] == 0 and page.tags["script"] == 3
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    own = re.sub(r"data:image/png;base64,[^\"]*|<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import", own)
    used = re.findall(r"url\(#([^)]*)\)", html)
    assert used and set(used) <= set(page.ids)


def test_page_contains_verdict_caveats_and_provenance(html: str) -> None:
    text = " ".join("".join(Page(html).text).split())
    for words in (
        "self_flow reached fd:local ≤ 25 first", "aligns to local:small",
        "the loss is not finite at step 2000", "9 of 10 runs finished",
        "torch 2.15.0", "cpu x86_64, threads: 1", "method.encoder.name",
        "flowrace report", "--target 25", "report-runs.csv", "0b7e9c3202d7bcd2", "9cece13e0f6d",
    ):  # fmt: skip
        assert words in text, words
    # The name of the host is left out.
    assert "nowhere" not in text


def test_convergence_figure_shows_every_run_and_arm(html: str) -> None:
    """At both widths there is a thin line for each run with a curve and a bold one for each arm."""
    pattern = r'<svg[^>]*aria-label="fd:local against steps by arm".*?</svg>'
    found = re.findall(pattern, html, re.DOTALL)
    assert len(found) == 2
    for figure in found:
        thin = r"stroke-width: 0.6; stroke-opacity: 0.55|stroke-opacity: 0.55; stroke-width: 0.6"
        assert len(re.findall(thin, figure)) == 10
        assert figure.count("stroke-width: 1.8") == 3
        assert all(f"var(--arm{i})" in figure for i in range(3))


@pytest.mark.slow
def test_equal_records_give_equal_bytes_and_reports_do_not_import_torch(
    race: Path, done: WrittenReport
) -> None:
    """The second report is written in another process with another hash seed."""
    files = [done.html, *(done.html.with_name(f"report{kind}.csv") for kind in ("", "-runs", "-finals"))]
    first = [file.read_bytes() for file in files]
    code = f"""if True:
        import sys
        from pathlib import Path
        import reports.cli.report
        from harness.cli.main import cli
        from reports.pages.page import write_report
        write_report([Path({str(race)!r})], Path({str(done.html)!r}), target=25)
        print([m for m in ("torch", "mlflow", "sklearn", "matplotlib.pyplot") if m in sys.modules])
    """
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONHASHSEED": "7", "PATH": ""},
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == "[]"
    assert [file.read_bytes() for file in files] == first


def test_csv_files_contain_the_numbers_of_the_page(done: WrittenReport) -> None:
    rows = list(csv.DictReader(io.StringIO(done.csv.read_text())))
    assert {(row["axis"], row["method"]) for row in rows} == set(done.report.race.times)
    for row in rows:
        time, gain = (
            done.report.race.times[row["axis"], row["method"]],
            done.report.race.speedups.get((row["axis"], row["method"])),
        )
        assert float(row["time"]) == time.estimate and int(row["n"]) == time.n and float(row["target"]) == 25
        if gain is not None:
            assert float(row["speedup"]) == gain.estimate and float(row["speedup_low"]) == gain.low
    runs = list(csv.DictReader(io.StringIO(done.runs_csv.read_text())))
    assert len(runs) == 10
    by_id = {row["run"]: row for row in runs}
    crossed = {run.record.id: run.crossing.step for run in done.report.race.runs if run.crosses}
    assert {name: float(row["steps"]) for name, row in by_id.items() if row["steps"]} == crossed
    assert by_id["failed"]["status"] == "failed" and "not finite" in by_id["failed"]["reason"]


def test_text_of_users_is_escaped(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"a{seed}", "flow", seed, grid=(10, 20, 30))
        write_run(
            tmp_path / f"b{seed}", HOSTILE, seed, grid=(10, 20, 30), environment={"device_name": HOSTILE}
        )
        write_run(tmp_path / f"c{seed}", HOSTILE, seed + 2, grid=(10, 20, 30), status="failed")
    # The name of a study is no path.
    name = HOSTILE.replace("/", "").replace("\\", "")
    (tmp_path / "study.toml").write_text(f"name = '''{name}'''\n")
    html = write_report([tmp_path], tmp_path / "report.html").html.read_text()
    page = Page(html)
    # The data, the library and the page's script; none from users.
    assert page.tags["script"] == 3
    assert "".join(page.text).count("<script>") > 5
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])
    assert any(HOSTILE in arm for arm in data["arms"])


def test_samples_are_side_by_side_at_equal_steps(race: Path, done: WrittenReport) -> None:
    found = samples_of(done.report.race)
    assert found.labels == ("flow", "repa", "self_flow") and found.seed == 0
    steps = [step for step, _ in found.rows]
    assert len(steps) == 5 and steps[0] == 200 and steps[-1] == 2000
    for step, pictures in found.rows:
        for label, uri in zip(found.labels, pictures, strict=True):
            content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
            assert content == (race / f"{label}-0" / "samples" / f"step-{step:08d}.png").read_bytes()


def test_captions_in_grids_are_listed_and_escaped(tmp_path: Path) -> None:
    captions = ["a red seven", HOSTILE, ""]
    files = []
    for method in ("flow", "repa"):
        write_run(tmp_path / method, method, grid=(10, 20))
        files.append(tmp_path / method / "samples" / "step-00000010.png")
        files[-1].write_bytes(png(np.zeros((8, 8, 3), np.uint8), captions))
    done = write_report([tmp_path], tmp_path / "r.html")
    assert samples_of(done.report.race).captions == tuple(captions)
    text = "".join(Page(done.html.read_text()).text)
    assert "a red seven" in text and HOSTILE in text and "the same latents and captions" in text
    assert "<script>alert" not in done.html.read_text()
    # Captions that differ between arms belong to none of them.
    files[0].write_bytes(png(np.zeros((8, 8, 3), np.uint8), ["another"]))
    assert samples_of(write_report([tmp_path], tmp_path / "r.html").report.race).captions == ()


@pytest.mark.usefixtures("undrawn")
def test_large_grids_become_thumbnails_and_invalid_ones_are_named(tmp_path: Path) -> None:
    for method in ("flow", "repa"):
        write_run(tmp_path / method, method, grid=(10, 20))
        Image.new("RGB", (2570, 1028), "teal").save(tmp_path / method / "samples" / "step-00000010.png")
    done = write_report([tmp_path], tmp_path / "r.html")
    ((_, (uri, _)),) = samples_of(done.report.race).rows
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (480, 192)
    (tmp_path / "repa" / "samples" / "step-00000010.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"repa/samples/step-00000010.png is not an image"):
        write_report([tmp_path], tmp_path / "r.html")


def test_spread_approximates_a_geometric_progression() -> None:
    assert spread([1, 2, 3]) == [1, 2, 3]
    assert spread(list(range(100, 1601, 100))) == [100, 200, 400, 800, 1600]


@pytest.mark.parametrize(("low", "high"), [(90, 2100), (6.2, 330), (0.93, 1.18), (1, 1e9), (4.4, 5.1)])
def test_log_ticks_are_few_and_within_limits(low: float, high: float) -> None:
    for most in (5, 9):
        ticks = log_ticks(low, high, most)
        assert 1 <= len(ticks) <= most and all(low <= tick <= high * (1 + 1e-9) for tick in ticks)


def test_quantity_has_three_digits_and_a_unit() -> None:
    texts = [
        quantity("steps", 399999.6),
        quantity("images", 128_000),
        quantity("flops", 9.994e17),
        quantity("seconds", 0.0123),
    ]
    assert texts == ["400,000", "128 k", "999 PFLOP", "12.3 ms"]
    assert quantity("gpu_seconds", 7200) == "2.00 device-h"


@pytest.mark.usefixtures("undrawn")
def test_write_report_replaces_only_reports(race: Path, done: WrittenReport, tmp_path: Path) -> None:
    """If one of the files exists and is not a report, nothing is written at all."""
    foreign = tmp_path / "report.csv"
    foreign.write_text("my,data\n1,2\n")
    with pytest.raises(UserError, match=r"report.csv already exists and is not a flowrace report"):
        write_report([race], tmp_path / "report.html", target=25)
    assert foreign.read_text() == "my,data\n1,2\n" and not (tmp_path / "report.html").exists()
    foreign.unlink()
    for file in done.html.parent.iterdir():
        shutil.copy(file, tmp_path)
    assert write_report([race], tmp_path / "report.html", target=25).csv == foreign


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("report.pdf", "a report is an .html file"),
        ("none/report.html", "cannot write"),
        ("d.html", "is a folder"),
    ],
)
def test_write_report_rejects_invalid_outputs(race: Path, tmp_path: Path, output: str, message: str) -> None:
    (tmp_path / "d.html").mkdir()
    with pytest.raises(UserError, match=message):
        write_report([race], tmp_path / output, target=25)
    assert [path.name for path in tmp_path.rglob("*")] == ["d.html"]


@pytest.mark.usefixtures("undrawn")
def test_report_command_prints_the_verdict_and_the_path(race: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    result = CliRunner().invoke(
        command, [str(race), "-o", str(output), "--target", "25"], catch_exceptions=False
    )
    lines = result.output.splitlines()
    assert lines[0].startswith("self_flow reached fd:local ≤ 25 first") and lines[-1] == str(output)


@pytest.mark.usefixtures("undrawn")
def test_report_command_prints_one_json_object(race: Path, tmp_path: Path) -> None:
    words = [str(race), "-o", str(tmp_path / "report.html"), "--target", "25", "--baseline", "repa", "--json"]
    found = json.loads(CliRunner().invoke(command, words, catch_exceptions=False).output)
    assert found["baseline"] == "repa" and found["target"] == 25 and len(found["runs"]) == 10
    assert set(found["verdict"]) == {"steps", "images", "flops", "seconds"}


@pytest.mark.parametrize("kind", ["one arm", "one evaluation", "unfinished", "nobody arrives", "protocols"])
def test_page_is_written_for_degenerate_races(tmp_path: Path, kind: str) -> None:
    arms = ["flow"] if kind == "one arm" else ["flow", "repa"]
    for method in arms:
        grid = (100,) if kind == "one evaluation" else (100, 200, 400)
        status = "stopped" if kind == "unfinished" else "done"
        protocol = method if kind == "protocols" else "same"
        write_run(tmp_path / method, method, grid=grid, status=status, protocol=protocol)
    target = 1e-6 if kind == "nobody arrives" else None
    done = write_report([tmp_path], tmp_path / "report.html", target=target)
    Page(done.html.read_text())
    start = {
        "one arm": "flow reached fd:local ≤ 50 (chosen",
        "one evaluation": "",
        "unfinished": "No run has finished yet",
        "nobody arrives": "No run reached",
        "protocols": "Inconclusive",
    }[kind]
    assert done.headline.startswith(start.split(" (")[0])


def test_report_command_imports_heavy_packages_only_when_run() -> None:
    heavy = ("torch", "scipy", "matplotlib", "jinja2", "numpy")
    code = f"import sys, reports.cli.report; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.usefixtures("undrawn")
def test_samples_are_none_when_arms_share_no_step(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "flow", grid=(10, 20), pictures=True)
    write_run(tmp_path / "b", "repa", grid=(10, 20))
    write_picture(tmp_path / "b" / "samples" / "step-00000030.png", 0, 0.5)
    assert samples_of(write_report([tmp_path], tmp_path / "r.html").report.race) is None
