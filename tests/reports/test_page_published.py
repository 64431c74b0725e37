"""Published curves on the page: requested by name, in a separate panel, with their protocol."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.errors import UserError
from reports.literature.database import published_curves
from reports.pages.page import write_report
from reports.pages.published import find_curves, label
from tests.reports.synthetic import write_race, write_run


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_race(
        tmp_path_factory.mktemp("race"), {"flow": 1, "repa": 1.4}, seeds=2, grid=range(200, 2001, 300)
    )


def section(html: str, name: str) -> str:
    start = html.index(f'<section id="{name}">')
    return html[start : html.index("</section>", start)]


def test_find_curves_reads_method_size_and_metric() -> None:
    [full] = find_curves(["repa:B:FID"])
    assert full.curves == published_curves("repa", "B", "FID") != ()
    [short] = find_curves(["repa"])
    assert short.curves == published_curves("repa", "XL", "FID") and short.metric == "FID"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("rep", "has the method 'rep'. Did you mean"),
        ("", "expected METHOD"),
        ("repa:XL:FID:1", "expected METHOD"),
        ("repa:XL:FIT", "has the metric 'FIT'. Did you mean 'FID'"),
        ("repa:no", "no published curve of repa for size no and FID"),
    ],
)
def test_wantedwithout_a_published_curve_writes_nothing(
    race: Path, tmp_path: Path, wanted: str, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        write_report([race], tmp_path / "report.html", published=[wanted])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_published_panel_is_separate_and_names_every_source_and_protocol(race: Path, tmp_path: Path) -> None:
    plain = write_report([race], tmp_path / "plain.html", target=40).html.read_text()
    html = write_report(
        [race], tmp_path / "report.html", target=40, published=["repa", "repa:B"]
    ).html.read_text()
    assert 'id="published"' not in plain
    charts = r'<svg[^>]*aria-label="fd:local against steps by arm".*?</svg>'
    assert re.findall(charts, plain, re.DOTALL) == re.findall(charts, html, re.DOTALL) != []
    panel = section(html, "published")
    curves = published_curves("repa", "XL", "FID") + published_curves("repa", "B", "FID")
    for curve in curves:
        assert f"published: {curve.method}" in panel and curve.source in panel and curve.sampler in panel
        assert all(
            f"{step:,}: {value:g}" in panel for step, value in zip(curve.steps, curve.values, strict=True)
        )
    [wide, narrow] = re.findall(r"<svg.*?</svg>", panel, re.DOTALL)
    assert len(re.findall(r"<path[^>]*stroke-dasharray[^>]*stroke: var\(--muted\)", wide)) >= len(curves)
    assert not re.search(r"var\(--arm\d", wide + narrow)
    assert "The quantity differs from that of the chart above" in panel
    assert "--published repa --published repa:B" in html


def test_labels_of_published_curves_name_the_source() -> None:
    texts = [label(curve) for curve in published_curves("repa", "XL", "FID")]
    assert "published: REPA(T7), Table 7 (repa, ImageNet-256)" in texts
    assert all(text.startswith("published: ") and "ImageNet-256" in text for text in texts)
    assert not any("http" in text for text in texts)


@pytest.mark.usefixtures("undrawn")
def test_provenance_lists_failed_and_stopped_runs_with_their_last_value_and_reason(tmp_path: Path) -> None:
    folder = write_race(tmp_path / "race", {"flow": 1, "repa": 1.4}, seeds=2, grid=range(200, 2001, 300))
    write_run(folder / "failed", "repa", 2, grid=(200, 400), status="failed")
    write_run(folder / "stopped", "repa", 3, grid=(200, 400), status="stopped")
    (folder / "logs").mkdir()
    (folder / "logs" / "stopped.log").write_text("step 400\nerror: no space left on <device>\n\n")
    html = write_report([folder], tmp_path / "report.html", target=40).html.read_text()
    listed = section(html, "provenance")
    assert "repa seed 2 (failed) failed, last value 50.0: the loss is not finite at step 400" in listed
    assert "repa seed 3 (stopped) stopped, last value 50.0: no space left on &lt;device&gt;" in listed
    assert (
        "1 failed run is treated as censored after the last evaluation. 1 is excluded from all numbers"
        in html
    )
