"""The size of a page: compact marks and lines without visible change, and thumbnails within their budget."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from reports.analysis.report import RaceReport
from reports.figures import race_figures, svg
from reports.figures.layout import WIDE
from reports.pages import samples
from reports.pages.samples import BUDGET, samples_of
from reports.pages.section import drawings
from reports.race.race import read_race
from tests.reports.synthetic import write_race, write_run


def drawn(text: str) -> list[tuple[str, ...]]:
    """Return every mark and line with its effective style and clipping, which it may inherit from groups."""
    marks: list[tuple[str, ...]] = []

    def walk(node: ElementTree.Element, style: str, clip: str) -> None:
        style, clip = node.get("style") or style, node.get("clip-path") or clip
        if node.tag in ("use", "path"):
            place = [node.get(name, "") for name in ("href", "x", "y", "d")]
            marks.append((node.tag, *place, style, clip))
        for child in node:
            walk(child, style, clip)

    walk(ElementTree.fromstring(text), "", "")
    return marks


def test_grouped_styles_equal_individual_styles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    race = read_race([write_race(tmp_path, {"flow": 1, "repa": 1.5}, seeds=6)], target=25)
    short = svg.inline(race_figures.draw_convergence(race, "steps", WIDE))
    monkeypatch.setattr(svg, "_grouped", lambda body: body)
    long = svg.inline(race_figures.draw_convergence(race, "steps", WIDE))
    assert drawn(short) == drawn(long) and len(drawn(short)) > 40
    assert short.count("style=") < long.count("style=") - 12


def test_compact_lines_deviate_less_than_a_tenth_of_a_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = read_race([write_race(tmp_path, {"flow": 1}, seeds=2, grid=range(50, 2001, 50))], target=25)
    short = svg.inline(race_figures.draw_convergence(race, "steps", WIDE))
    monkeypatch.setattr(svg, "_line", lambda path: path)
    long = svg.inline(race_figures.draw_convergence(race, "steps", WIDE))
    numbers = [
        [re.findall(r"-?\d+(?:\.\d+)?", d) for _, _, _, _, d, _, _ in drawn(text)] for text in (short, long)
    ]
    assert [len(line) for line in numbers[0]] == [len(line) for line in numbers[1]]
    for few, many in zip(*numbers, strict=True):
        assert np.allclose(np.array(few, float), np.array(many, float), atol=0.051, rtol=0)


def test_thumbnails_of_many_arms_shrink_to_the_budget(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (256, 640, 3), dtype=np.uint8))
    for arm in range(12):
        path = tmp_path / str(arm)
        write_run(path, "self_flow", grid=(10, 20, 30), set_={"method.mask_ratio": arm / 20})
        for step in (10, 20, 30):
            noise.save(path / "samples" / f"step-{step:08d}.png")
    found = samples_of(read_race([tmp_path], baseline="self_flow (mask_ratio = 0)"))
    used = sum(len(uri) for _, row in found.rows for uri in row)
    assert 0.2 * BUDGET < used <= BUDGET and all(len(row) == 12 for _, row in found.rows)
    assert [step for step, _ in found.rows][:: len(found.rows) - 1] == [10, 30]


def test_convergence_is_drawn_once_for_all_widths_when_it_has_many_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = read_race([write_race(tmp_path, {"flow": 1, "repa": 1.5}, seeds=2)], target=25)
    from reports.pages import sections

    assert str(sections.convergence_section(RaceReport(race))).count("<svg") == 2 + 2 * 4
    monkeypatch.setattr(sections, "BUSY", 3)
    page = str(sections.convergence_section(RaceReport(race)))
    assert page.count("<svg") == 2 + 4 and 'class="narrow' not in page and 'class="wide' not in page
    assert len(drawings(lambda width: race_figures.draw_forest(race, width))) == 2
    assert samples.SHAPES[0] == (samples.WIDEST, samples.MOST_STEPS)
