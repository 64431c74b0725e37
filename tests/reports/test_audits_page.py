"""The cards of claims on a page, compared with the output of `flowrace audit` on the same runs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tomli_w
from click.testing import CliRunner

from harness.errors import UserError
from reports.audit.judge_files import judge_claims
from reports.cli.audit import audit as command
from reports.cli.report import report
from reports.pages.audits import draw_claim
from reports.pages.page import write_report
from tests.reports.synthetic import METRIC, write_race

HOSTILE = "<script>alert(1)</script> $x_1$ & co"


class Section(HTMLParser):
    """The text of the section `claims`, without that in figures, and the order of all sections."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.order: list[str] = []
        self.text = ""
        self._drawn = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "section":
            self.order.append(dict(attrs).get("id", ""))
        self._drawn += tag == "svg"

    def handle_endtag(self, tag: str) -> None:
        self._drawn -= tag == "svg"

    def handle_data(self, data: str) -> None:
        if self.order == ["claims"] and not self._drawn:
            self.text += data


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def claims_file(folder: Path, *rows: dict) -> Path:
    about = {"baseline": "flow", "metric": METRIC, "target": 25.0, "axis": "steps"}
    file = folder / "claims.toml"
    file.write_text(tomli_w.dumps({"claim": [about | row for row in rows]}))
    return file


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("race")
    return write_race(folder, {"flow": 1, "self_flow": 1.6, "sra": 1.01}, grid=range(200, 2001, 200))


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three claims, one for each verdict, with hostile names."""
    return claims_file(
        tmp_path_factory.mktemp("claims"),
        {"name": HOSTILE, "candidate": "self_flow", "factor": 1.4},
        {"name": "twice", "candidate": "sra", "factor": 2.0, "axis": "flops"},
        {"name": "equal", "candidate": "self_flow", "factor": 1.6, "kind": "equal", "tolerance": 0.01},
    )


@pytest.mark.usefixtures("undrawn")
def test_page_has_the_text_of_the_audit(race: Path, claims: Path, tmp_path: Path) -> None:
    """The words are equal; only the wrapping of cells and lines differs."""
    html = write_report([race], tmp_path / "r.html", target=25, claims=[claims]).html.read_text()
    section = Section(html)
    assert section.order[:2] == ["claims", "verdict"]
    shown = plain(section.text).replace("×", "x")
    printed = CliRunner().invoke(command, [str(claims), str(race)], catch_exceptions=False).output
    for verdict in ("SUPPORTED", "REFUTED", "INCONCLUSIVE"):
        assert verdict in printed and verdict.lower() in shown
    for words in (w for line in printed.splitlines() for w in re.split(r"\s{2,}|^- ", line.strip())):
        word = plain(words).strip('"')
        assert word.lower() in shown.lower(), word


@pytest.mark.usefixtures("undrawn")
def test_names_of_claims_are_escaped(race: Path, claims: Path, tmp_path: Path) -> None:
    html = write_report([race], tmp_path / "r.html", target=25, claims=[claims]).html.read_text()
    assert html.count("<script") == 3 and HOSTILE in Section(html).text


def test_figure_shows_the_factors_that_the_claim_needs(race: Path, claims: Path) -> None:
    """The band begins at factor / (1 + tolerance); each axis with a speed-up has interval and diamond."""
    found = judge_claims([claims], [str(race)])
    for one in found:
        drawn = draw_claim(one, 1, "p").figure.axes[0]
        (field,) = drawn.patches
        assert field.get_x() == pytest.approx(one.claim.factor / (1 + one.claim.tolerance))
        known = [gain for gain in one.gains.values() if gain.estimate]
        diamonds = [line.get_xdata()[0] for line in drawn.lines if line.get_marker() == "D"]
        assert diamonds == pytest.approx([gain.estimate for gain in known])
        ends = [tuple(line.get_xdata()) for line in drawn.lines if len(line.get_xdata()) == 2][-len(known) :]
        assert ends == [pytest.approx((gain.low, gain.high)) for gain in known]
    equal = draw_claim(found[2], 1, "p").figure.axes[0].patches[0]
    assert equal.get_x() + equal.get_width() == pytest.approx(1.6 * 1.01)


@pytest.mark.usefixtures("undrawn")
def test_page_without_claims_has_no_section(race: Path, tmp_path: Path) -> None:
    assert 'id="claims"' not in write_report([race], tmp_path / "r.html", target=25).html.read_text()


def test_claim_about_unknown_arms_writes_no_files(race: Path, tmp_path: Path) -> None:
    file = claims_file(tmp_path, {"name": "x", "candidate": "repo", "factor": 2.0})
    with pytest.raises(UserError, match=r"unknown method 'repo' .*self_flow"):
        write_report([race], tmp_path / "r.html", target=25, claims=[file])
    assert [path.name for path in tmp_path.iterdir()] == ["claims.toml"]


@pytest.mark.usefixtures("undrawn")
def test_report_command_prints_verdicts_as_text_and_json(race: Path, claims: Path, tmp_path: Path) -> None:
    words = [str(race), "-o", str(tmp_path / "r.html"), "--target", "25", "--claim", str(claims)]
    printed = CliRunner().invoke(report, words, catch_exceptions=False).output.splitlines()
    verdicts = ["supported", "refuted", "inconclusive"]
    assert [line.partition(":")[0].lower() for line in printed[:3]] == verdicts
    printed = json.loads(CliRunner().invoke(report, [*words, "--json"], catch_exceptions=False).output)
    audited = json.loads(
        CliRunner().invoke(command, [str(claims), str(race), "--json"], catch_exceptions=False).output
    )
    assert (
        printed["claims"] == audited["claims"] and [one["verdict"] for one in printed["claims"]] == verdicts
    )
