"""The data of the interactive charts, and the charts in a browser at desktop and phone width."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.figures.chart_data import (
    LEAST,
    allowance,
    mean_band,
    payload,
    script_json,
    thin,
)
from reports.figures.race_figures import AXIS_NAMES
from reports.pages.page import LIBRARY, write_report
from reports.race.by_target import common_targets, gains_by_target, speedup_by_target
from reports.race.race import read_race
from tests.reports.synthetic import power_law, write_race, write_run

# sha256 of the files in the npm package uplot 1.6.32.
UPLOT = {
    f"{LIBRARY}.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    f"{LIBRARY}.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
PROBE = """
<script>addEventListener("error", (e) => { document.documentElement.dataset.error = e.message; });</script>
"""
ACT = """
<script>setTimeout(() => {
  const all = (q) => [...document.querySelectorAll(q)], found = {};
  const shown = () => all("[data-chart=convergence]")
    .filter((p) => p.querySelector("canvas") && p.clientWidth > 0).map((p) => p.dataset.axis);
  found.width = innerWidth;
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  found.first = shown();
  found.still = all(".still").filter((p) => p.clientHeight > 0).length;
  document.querySelector("label[for=axis-flops]").click();
  found.second = shown();
  const arm = document.querySelector("li[data-arm='1'] button");
  arm.click();
  found.pressed = arm.getAttribute("aria-pressed");
  arm.click();
  const table = document.querySelector("#runs table"), head = table.tHead.rows[0].cells[1];
  const seeds = () => [...table.tBodies[0].rows].map((r) => r.cells[1].textContent);
  head.querySelector("button").click();
  found.up = [head.getAttribute("aria-sort"), seeds()];
  head.querySelector("button").click();
  found.down = [head.getAttribute("aria-sort"), seeds()];
  found.copied = Object.fromEntries([...document.querySelectorAll("#times p.copy button")].map((b) => {
    const n = b.textContent; b.click(); return [n, b.dataset.copied];
  }));
  found.error = document.documentElement.dataset.error ?? null;
  parent.document.body.dataset.found = JSON.stringify(found);
}, 300);</script>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("race")
    return write_race(folder, {"flow": 1, "repa": 1.3, "self_flow": 1.6}, grid=range(200, 2001, 200))


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("page") / "report.html"
    return write_report([folder], output, target=30).html.read_text()


def test_vendored_library_equals_the_published_package() -> None:
    """The files have the bytes of the registry's package, and the licence is included."""
    vendor = resources.files("reports") / "vendor"
    assert {name: hashlib.sha256((vendor / name).read_bytes()).hexdigest() for name in UPLOT} == UPLOT
    assert "MIT" in (vendor / "uplot-LICENSE.txt").read_text()


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(4, 120), st.integers(0, 9))
def test_thin_keeps_ends_and_extremes(count: int, most: int, seed: int) -> None:
    y = np.random.default_rng(seed).lognormal(size=count)
    kept = thin(np.arange(count), y, most)
    assert len(kept) <= max(most, 4) and (np.diff(kept) > 0).all()
    assert kept[0] == 0 and kept[-1] == count - 1
    assert y[kept].min() == y.min() and y[kept].max() == y.max()


def test_mean_band_matches_scipys_t_interval(folder: Path) -> None:
    """The reference is scipy's interval of the logs at one step."""
    from scipy import stats

    runs = read_race([folder], target=30).of("flow")
    steps, mean, low, high = mean_band(runs)
    logs = [np.log(run.curve.fitted[4]) for run in runs]
    ends = stats.t.interval(0.95, len(runs) - 1, np.mean(logs), stats.sem(logs))
    assert steps[4] == 1000 and mean[4] == pytest.approx(np.exp(np.mean(logs)))
    assert (low[4], high[4]) == pytest.approx(tuple(np.exp(ends)))


def test_costs_at_each_step_match_the_costs_at_one(folder: Path) -> None:
    run = read_race([folder], target=30).runs[0]
    for axis in ("steps", "images", "flops", "seconds"):
        steps = np.array([200.0, 333.0, 2000.0])
        assert run.costs.at_each(axis, steps).tolist() == [run.costs.at(axis, step) for step in steps]


def test_speed_up_of_two_is_two_at_every_target(tmp_path: Path) -> None:
    """The curves are power laws that differ by a factor of 2 in steps, so S(target) = 2 on any grid."""
    for seed in range(2):
        write_run(
            tmp_path / f"a{seed}", "flow", seed, metric=power_law(1000, 0.5), grid=range(100, 4001, 100)
        )
        write_run(
            tmp_path / f"b{seed}",
            "repa",
            seed,
            metric=power_law(1000 / 2**0.5, 0.5),
            grid=range(70, 2001, 70),
        )
    race = read_race([tmp_path])
    at = common_targets(race)
    assert len(at) == 41 and (np.diff(at) < 0).all()
    gains = gains_by_target(race, ["steps"], at)["steps"]["repa"]
    known = [gain.estimate for gain in gains if not gain.censored_baseline and not gain.censored_candidate]
    assert len(known) > 20 and known == pytest.approx([2.0] * len(known), rel=1e-9)


def test_speed_up_by_target_contains_the_verdict(folder: Path) -> None:
    race = read_race([folder], target=30)
    for axis in race.axes:
        assert gains_by_target(race, [axis], [30.0])[axis]["repa"] == [race.speedups[axis, "repa"]]


def test_payload_contains_every_run_on_every_axis(folder: Path) -> None:
    race = read_race([folder], target=30)
    found = payload(race, speedup_by_target(race), AXIS_NAMES)
    assert set(found["convergence"]) == set(found["targets"]) == set(race.axes)
    for axis, chart in found["convergence"].items():
        seeds = [line for line in chart["series"] if line["kind"] == "seed"]
        assert len(seeds) == len(race.runs) and len(chart["dots"]) == len(race.runs)
        assert seeds[0]["y"] == pytest.approx(race.runs[0].curve.measured, rel=1e-4)
        assert seeds[0]["x"][-1] == pytest.approx(race.runs[0].costs.budget(axis), rel=1e-4)


def test_script_json_cannot_close_its_script_element() -> None:
    hostile = {"name": "</script><!-- & \u2028"}
    assert not set("<>&") & set(script_json(hostile)) and json.loads(script_json(hostile)) == hostile


@pytest.mark.usefixtures("undrawn")
def test_page_reports_thinned_curves(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"a{seed}", "flow", seed, grid=range(1, 2601), status="done")
    race = read_race([tmp_path])
    assert allowance(race) == 2500 and allowance(race, 10) == LEAST
    done = write_report([tmp_path], tmp_path / "r.html")
    assert "thinned to 2500 points per run" in done.html.read_text()


@pytest.mark.slow
def test_scripts_make_no_requests(page: str) -> None:
    scripts = "".join(re.findall(r"<script>(.*?)</script>", page, re.DOTALL))
    assert not re.search(
        r"\bfetch\(|XMLHttpRequest|WebSocket|importScripts|import\(|\beval\(|\.innerHTML", scripts
    )
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 390])
def test_browser_draws_sorts_and_copies(page: str, width: int, tmp_path: Path) -> None:
    found = browse(page, width, tmp_path)
    assert found["error"] is None and found["width"] == width and found["overflow"] <= 0
    assert found["first"] == ["steps"] and found["second"] == ["flops"] and found["still"] == 0
    assert found["pressed"] == "false"
    assert found["up"] == ["ascending", list("000111222")] and found["down"] == [
        "descending",
        list("222111000"),
    ]
    csv, markdown, latex = (found["copied"][name] for name in ("CSV", "Markdown", "LaTeX"))
    assert csv.startswith("axis,Arm,To fd:local ≤ 30,Speed-up over flow\nsteps,flow n = 3,")
    assert markdown.splitlines()[1] == "| --- | --- | --- | --- |" and len(csv.splitlines()) == 13
    assert (
        latex.startswith("\\begin{tabular}{llll}\n\\toprule\naxis & Arm & To fd:local $\\le$ 30 & ")
        and "$\\times$" in latex
    )


def browse(page: str, width: int, folder: Path) -> dict[str, Any]:
    """Return the findings of the script `ACT` in a frame of this width; skip without Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    inner = page.replace("<head>", f"<head>{PROBE}", 1).replace("</body>", f"{ACT}</body>", 1)
    frame = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(inner)}"></iframe>'
    file = folder / "frame.html"
    file.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin:0">{frame}')
    words = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", "--virtual-time-budget=4000",
    ]  # fmt: skip
    result = subprocess.run(
        [browser, *words, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in result.stderr, result.stderr
    match = re.search(r'data-found="([^"]*)"', result.stdout)
    assert match, result.stderr
    return json.loads(html.unescape(match[1]))
