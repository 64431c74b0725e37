"""The page in Chromium: at three widths, without scripts, in dark mode, by keyboard, and printed."""

from __future__ import annotations

import base64
import csv
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports.gallery.site import write_gallery
from reports.pages.page import write_report
from tests.conftest import ROOT
from tests.reports.synthetic import power_law, write_run

INERT = "<script>window.broken = 1</script>"
OVERFLOWING = """return [...document.querySelectorAll("body *")].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > innerWidth + 1 && !e.closest(".scroll, svg, .uplot, pre");
}).map(e => e.outerHTML.slice(0, 120));"""
CLAIM = """
[claim]
name = "faster-by-two"
candidate = "repa"
baseline = "flow"
metric = "fd:local"
target = 40.0
axis = "steps"
factor = 2.0
kind = "at_least"
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two arms with three seeds, a failed run with markup in its name, sample grids, a claim, and
    published curves."""
    folder = tmp_path_factory.mktemp("browser")
    for seed in range(3):
        for method, scale in (("flow", 1000.0), ("repa", 800.0)):
            run = folder / "runs" / f"{method}{seed}"
            phases = {"student": {"flow": 0.0235, "repa": 1.5}[method]}
            curve = power_law(scale * 1.03**seed, 0.5)
            others = {"cer": power_law(1.1, 0.1)}
            write_run(run, method, seed, metric=curve, others=others, phases=phases, pictures=True)
    write_run(folder / "runs" / "bad", INERT, 0, status="failed")
    (folder / "claim.toml").write_text(CLAIM)
    output = folder / "report.html"
    write_report(
        [folder / "runs"], output, target=40.0, published=["repa:XL:FID"], claims=[folder / "claim.toml"]
    )
    return output


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gallery of the repository, of which one study gets curves, so that it has a report."""
    folder = tmp_path_factory.mktemp("gallery")
    shutil.copytree(ROOT / "benchmarks" / "results", folder / "results")
    rows = [
        f"{method},{seed},{step},fd:local,{scale * step**-0.5}"
        for method, scale in (("flow", 100.0), ("repa", 80.0))
        for seed in range(3)
        for step in range(100, 1001, 100)
    ]
    content = "\n".join(["method,seed,step,metric,value", *rows])
    (folder / "results" / "words" / "curves.csv").write_text(content)
    about = folder / "results" / "words" / "gallery.toml"
    about.write_text(about.read_text().replace("Short words", INERT))
    write_gallery(folder / "results", folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip(
            "Chromium and its driver are not installed (Debian: apt-get install chromium chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless=new", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{word}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def shown(browser: Any, page: Path, width: int = 1280, *, scripts: bool = True, dark: bool = False) -> Any:
    """Load the page again with these settings, which replace those of the last call."""
    send = browser.execute_cdp_cmd
    send(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    send("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    send("Emulation.setEmulatedMedia", {"media": "", "features": [scheme]})
    browser.get(page.as_uri())
    return browser


def ask(browser: Any, script: str, *given: Any) -> Any:
    """Run JavaScript in the page and return its result."""
    return browser.execute_script(script, *given)


def test_page_logs_no_errors_and_fetches_nothing(browser: Any, page: Path) -> None:
    shown(browser, page)
    assert browser.get_log("browser") == []
    assert ask(browser, "return performance.getEntriesByType('resource').map(e => e.name)") == []


def test_text_of_users_is_not_executed(browser: Any, page: Path) -> None:
    shown(browser, page)
    assert ask(browser, "return window.broken") is None
    assert INERT in ask(browser, "return document.body.textContent")


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_page_has_no_horizontal_overflow(browser: Any, page: Path, width: int) -> None:
    """Elements wider than the page scroll inside their own box."""
    shown(browser, page, width)
    assert ask(browser, "return document.documentElement.scrollWidth") <= width
    assert ask(browser, OVERFLOWING) == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["index.html", "words.html", "joint-bounce.html", "words/report.html"])
def test_gallery_opens_offline_without_overflow(browser: Any, gallery: Path, name: str, width: int) -> None:
    shown(browser, gallery / name, width)
    assert browser.get_log("browser") == []
    assert ask(browser, "return performance.getEntriesByType('resource').map(e => e.name)") == []
    assert ask(browser, "return document.documentElement.scrollWidth") <= width
    assert ask(browser, OVERFLOWING) == []
    assert ask(browser, "return window.broken") is None


def test_links_of_cards_open_their_pages(browser: Any, gallery: Path) -> None:
    shown(browser, gallery / "index.html")
    links = ask(browser, "return [...document.querySelectorAll('.card a')].map(a => a.href)")
    assert len(links) == len(list(gallery.glob("*.html"))) and any("report.html" in one for one in links)
    for link in links:
        browser.get(link)
        assert ask(browser, "return document.querySelectorAll('h1').length") == 1


def test_axis_switch_changes_the_chart(browser: Any, page: Path) -> None:
    shown(browser, page)
    visible = """return [...document.querySelectorAll("#convergence .pane")]
        .filter(p => p.offsetParent).map(p => [p.className, p.querySelectorAll("canvas").length]);"""
    assert ask(browser, visible) == [["pane steps", 1]]
    ask(browser, "document.querySelector('label[for=axis-flops]').click()")
    assert ask(browser, visible) == [["pane flops", 1]]
    x = "return JSON.parse(document.getElementById('data').textContent).convergence.flops.x"
    assert "FLOP" in ask(browser, x)


def test_chart_by_target_marks_the_target(browser: Any, page: Path) -> None:
    """A dashed line marks the target: without it the pixels differ."""
    shown(browser, page)
    canvas = "document.querySelector('[data-chart=targets] canvas').toDataURL()"
    marks = "Object.values(JSON.parse(document.getElementById('data').textContent).targets).map(c => c.mark)"
    assert set(ask(browser, f"return {marks}")) == {40.0}
    with_line = ask(browser, f"return {canvas}")
    bare = page.with_name("bare.html")
    bare.write_text(page.read_text().replace('"mark":40.0', '"mark":null'))
    shown(browser, bare)
    assert ask(browser, f"return {canvas}") != with_line


def test_tables_sort_by_click_and_by_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    shown(browser, page)
    column = """const t = document.querySelector("#runs table.sort") ?? document.querySelector("table.sort");
        const i = [...t.tHead.rows[0].cells].findIndex(c => c.textContent.toLowerCase().includes("seed"));
        return [i, [...t.tBodies[0].rows].map(r => r.cells[i].textContent.trim()),
                t.tHead.rows[0].cells[i].getAttribute("aria-sort")];"""
    place, _, state = ask(browser, column)
    assert place >= 0 and state == "none"
    table = "(document.querySelector('#runs table.sort') ?? document.querySelector('table.sort'))"
    head = f"{table}.tHead.rows[0].cells[{place}].querySelector('button')"
    ask(browser, f"{head}.click()")
    _, seeds, state = ask(browser, column)
    assert state == "ascending" and seeds == sorted(seeds, key=float)
    ask(browser, f"{head}.focus()")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    _, seeds, state = ask(browser, column)
    assert state == "descending" and seeds == sorted(seeds, key=float, reverse=True)


def test_quantities_sort_by_size_when_units_differ(browser: Any, page: Path) -> None:
    """23.5 ms comes before 1.5 s."""
    shown(browser, page)
    script = """const t = document.querySelector("#cost table.sort");
        const i = [...t.tHead.rows[0].cells].findIndex(c => c.textContent.includes("Time per step"));
        for (const row of t.tBodies[0].rows)
            if (row.cells[i].textContent.trim() === "1,500 ms") row.cells[i].textContent = "1.5 s";
        t.tHead.rows[0].cells[i].querySelector("button").click();
        return [...t.tBodies[0].rows].map(r => r.cells[i].textContent.trim()).filter(s => / m?s$/.test(s));"""
    found = [text.split() for text in ask(browser, script)]
    sizes = [float(value) * {"ms": 1e-3, "s": 1.0}[unit] for value, unit in found]
    assert sizes == sorted(sizes) and {unit for _, unit in found} == {"ms", "s"}


def test_chart_is_readable_by_keyboard(browser: Any, page: Path) -> None:
    """Arrow keys move to the next point on that side of the screen; the readout has its x and values."""
    from selenium.webdriver.common.keys import Keys

    shown(browser, page)
    for kind in ("convergence", "targets"):
        chart = f"[data-chart={kind}][data-axis=steps]"
        ask(browser, f"document.querySelector('{chart}').focus()")
        readout = f"return document.querySelector('{chart}').nextElementSibling.textContent"
        places = []
        for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT):
            browser.switch_to.active_element.send_keys(key)
            text = ask(browser, readout)
            assert "flow " in text or "repa " in text
            places.append(float(text.rpartition(":")[0].split()[-1].replace(",", "")))
        first, second, back = places
        assert first == back and (second > first) == (kind == "convergence")
        assert ask(browser, f"return document.querySelector('{chart}').ariaLabel").strip()


def test_focused_legend_entry_highlights_its_arm(browser: Any, page: Path) -> None:
    """The chart changes while the entry has the focus, and changes back after. A click hides the arm."""
    shown(browser, page)
    picture = "return document.querySelector('[data-chart=convergence] canvas').toDataURL()"
    name = "document.querySelector('#convergence .legend button')"
    plain = ask(browser, picture)
    ask(browser, f"{name}.focus()")
    lit = ask(browser, picture)
    ask(browser, f"{name}.blur()")
    assert lit != plain and ask(browser, picture) == plain
    ask(browser, f"{name}.click()")
    assert ask(browser, f"return {name}.ariaPressed") == "false" and ask(browser, picture) != plain


def test_tables_are_copied_as_csv_markdown_and_latex(browser: Any, page: Path) -> None:
    shown(browser, page)
    ask(browser, "document.querySelectorAll('#claims p.copy button').forEach(b => b.click())")
    copied = ask(
        browser,
        "return Object.fromEntries([...document.querySelectorAll('#claims p.copy button')]"
        ".map(b => [b.textContent.split(/[ :]/)[0], b.dataset.copied]))",
    )
    rows = list(csv.reader(io.StringIO(copied["CSV"])))
    assert rows[0] == ["Axis", "Speed-up", "Interval", "Direction"] and len({len(row) for row in rows}) == 1
    assert len(rows) == 6 and rows[1][0] == "steps *"
    lines = copied["Markdown"].splitlines()
    assert lines[0] == "| Axis | Speed-up | Interval | Direction |" and len(lines) == len(rows) + 1
    assert copied["LaTeX"].startswith("\\begin{tabular}{llll}") and copied["LaTeX"].count(r" \\") == len(rows)
    assert "\xa0" not in "".join(copied.values())


def test_page_shows_every_figure_without_scripts(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By

    shown(browser, page, scripts=False)
    try:
        sections = browser.find_elements(By.CSS_SELECTOR, "section figure")
        drawn = [f for f in sections if f.is_displayed()]
        assert len(drawn) >= 4
        for figure in drawn:
            svgs = [s for s in figure.find_elements(By.CSS_SELECTOR, "svg, img") if s.is_displayed()]
            assert svgs and all(s.size["width"] > 100 and s.size["height"] > 30 for s in svgs)
        assert not [c for c in browser.find_elements(By.CSS_SELECTOR, ".chart") if c.is_displayed()]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_all_controls_are_reachable_by_keyboard(browser: Any, page: Path) -> None:
    shown(browser, page)
    # Only buttons, radio buttons and links react.
    script = """return [...document.querySelectorAll("[onclick], [role=button], a:not([href])")].length;"""
    assert ask(browser, script) == 0
    ask(browser, "document.querySelector('#axis-steps').focus()")
    outline = "return getComputedStyle(document.querySelector('#axis-steps + label')).outlineStyle"
    browser.execute_cdp_cmd(
        "Input.dispatchKeyEvent",
        {"type": "keyDown", "key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39},
    )
    browser.execute_cdp_cmd(
        "Input.dispatchKeyEvent",
        {"type": "keyUp", "key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39},
    )
    moved = ask(browser, "return document.activeElement.id")
    assert moved.startswith("axis-") and moved != "axis-steps"
    assert ask(browser, outline.replace("axis-steps", moved)) == "solid"
    named = """return [...document.querySelectorAll("button, input")].filter(
        e => !(e.textContent.trim() || e.labels?.length || e.ariaLabel)).length;"""
    assert ask(browser, named) == 0


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio (WCAG 2) of two colours `rgb(r, g, b)`."""

    def luminance(text: str) -> float:
        numbers = [float(v) / 255 for v in text[text.index("(") + 1 : -1].split(",")[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in numbers]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_enough_contrast_in_light_and_dark_mode(browser: Any, page: Path, dark: bool) -> None:
    shown(browser, page, dark=dark)
    script = """const paper = getComputedStyle(document.body).backgroundColor;
        return [paper, ...["body", ".facts", ".headline", ".notes", "td small", "thead th", ".slower",
            ".faster", "figcaption", "figure svg text"]
            .map(q => document.querySelector(q)).filter(Boolean)
            .map(e => e.tagName === "text" ? getComputedStyle(e).fill : getComputedStyle(e).color)];"""
    paper, *inks = ask(browser, script)
    assert (contrast(paper, "rgb(0, 0, 0)") < 2) == dark
    assert min(contrast(paper, ink) for ink in inks) >= 4.5


def test_print_shows_static_figures_and_full_tables(browser: Any, page: Path) -> None:
    """In print nothing is wider than the sheet or cut off, and the PDF has several pages."""
    shown(browser, page, 794)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert ask(browser, "return document.documentElement.scrollWidth") <= 794
    stills = (
        "return [...document.querySelectorAll('#convergence .still.wide')].filter(e => e.offsetParent).length"
    )
    assert ask(browser, stills) == 1
    cut = """return [...document.querySelectorAll(".scroll")]
        .filter(e => e.scrollWidth > e.clientWidth + 1).length"""
    assert ask(browser, cut) == 0
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    sheet = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert sheet.startswith(b"%PDF") and len(sheet) > 20_000
    assert sheet.count(b"/Type /Page\n") + sheet.count(b"/Type /Page ") + sheet.count(b"/Type/Page/") >= 2
