"""The first section of a page: a card for each audited claim, in the words of
`flowrace audit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.analysis.report import RaceReport
from reports.audit import words
from reports.audit.audit import Audit
from reports.figures import svg
from reports.figures.layout import padded
from reports.figures.strips import ROW, StripRow, draw_strip, set_log_ticks
from reports.figures.svg import MUTED, Picture
from reports.pages.section import render_template
from reports.race.arms import find_arm
from reports.race.race import Race
from reports.stats.curves import AXES
from reports.stats.speedup import Speedup

WIDTH = 3.6
"""The width of a card's picture in inches: next to its table on a wide page, below it on a narrow one."""
MARKS = {"supported": "✓", "refuted": "✗", "inconclusive": "?"}
"""A verdict is shown by a sign and a word, not by colour alone."""


def claims_section(report: RaceReport) -> Markup | None:
    """Return the cards, and for a family of claims the table of its verdicts as they are and adjusted."""
    race, found = report.race, report.claims
    if not found:
        return None
    return render_template(
        "audits", race, cards=[_card(race, one, n) for n, one in enumerate(found)], audits=found
    )


def draw_claim(found: Audit, arm: int, name: str) -> Picture | None:
    """Return the speed-up on each axis with its interval, 1, and the factors that fulfil the claim; None
    without a speed-up."""
    gains = {axis: gain for axis in AXES if (gain := (found.gains or {}).get(axis)) and gain.estimate}
    if not gains:
        return None
    lines: dict[str, words.AxisLine] = dict(zip(AXES, words.axis_lines(found), strict=True))
    rows = [_row(arm, gain) for gain in gains.values()]
    limits = _limits(found, list(gains.values()))
    with svg.style():
        figure = Figure(figsize=(WIDTH, 0.7 * ROW * len(rows) + 0.75))
        axes = figure.subplots()
        _draw_claim(axes, found, limits)
        draw_strip(axes, rows, limits)
        axes.set_yticks(range(len(rows)), [_name(lines[axis]) for axis in gains])
        axes.tick_params(axis="y", length=0)
        set_log_ticks(axes.xaxis, limits, 5, "{:g}×")
        axes.set_xlabel(f"speed-up over {found.claim.baseline}, log scale")
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.34, right=0.97, top=1 - 0.08 / height, bottom=0.47 / height)
        return Picture(figure, name, f"speed-ups of {found.claim.name} with intervals, and what is claimed")


def _card(race: Race, found: Audit, number: int) -> dict[str, Any]:
    arm = race.arms.index(find_arm(race.arms, found.claim.candidate))
    drawn = draw_claim(found, arm, f"claim-{number}")
    return {
        "name": found.claim.name,
        "claimed": words.claimed(found),
        "verdict": found.verdict,
        "mark": MARKS[found.verdict],
        "because": words.because(found),
        "lines": [(_name(line), line) for line in words.axis_lines(found)],
        "picture": None if drawn is None else Markup(svg.inline(drawn)),
        "facts": words.facts(found),
        "notes": words.notes(found),
    }


def _name(line: words.AxisLine) -> str:
    return line.name + " *" * line.claimed


def _row(arm: int, gain: Speedup) -> StripRow:
    return StripRow("", arm, "", gain.estimate, gain.low, gain.high, resolved=gain.direction != "unresolved")


def _limits(found: Audit, gains: Sequence[Speedup]) -> tuple[float, float]:
    """Return limits around estimates, 1 and the claim, and ends at most fourfold beyond them."""
    near = [gain.factor for gain in gains] + [1.0, found.claim.low, found.claim.factor]
    least, most = min(near) / 4, max(near) * 4
    return padded(
        near + [end for gain in gains for end in (gain.low, gain.high) if end and least < end < most]
    )


def _draw_claim(axes: Axes, found: Audit, limits: tuple[float, float]) -> None:
    """Draw the factors that satisfy the claim as a band, up to the edge if they are unbounded."""
    claim = found.claim
    low, high = claim.low, min(claim.high, limits[1])
    axes.axvspan(low, high, color=MUTED, alpha=0.13, linewidth=0)
    axes.axvline(1, color=MUTED, linewidth=0.8)
