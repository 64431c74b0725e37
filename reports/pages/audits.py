"""The first section of a page: a card for each audited claim, in the words of `flowrace audit`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metrics.intervals import student
from reports.analysis.report import RaceReport
from reports.audit import words
from reports.audit.audit import Audit
from reports.audit.success import SuccessAudit
from reports.audit.success_words import claimed_success, success_facts, success_lines
from reports.figures import svg
from reports.figures.layout import padded
from reports.figures.strips import StripRow, draw_strip, row_height, set_log_ticks
from reports.figures.svg import MUTED, Picture
from reports.pages.section import render_template
from reports.race.arms import find_arm
from reports.race.race import Race
from reports.stats.curves import AXES
from reports.stats.speedup import Speedup, with_critical

WIDTH = 3.6
"""The width of a card's figure in inches: next to its table on a wide page, below it on a narrow one."""
MARKS = {"supported": "✓", "refuted": "✗", "inconclusive": "?"}
"""Signs of verdicts, so that colour alone does not distinguish them."""


def claims_section(report: RaceReport) -> Markup | None:
    """Return the cards, and for several claims the table of verdicts before and after adjustment.

    Claims of speed-ups come first; those about success are another family. None without a claim.
    """
    race, audits, succeeded = report.race, report.claims, report.success_claims
    if not audits and not succeeded:
        return None
    cards = [_card(race, audit, number) for number, audit in enumerate(audits)]
    cards += map(_success_card, succeeded)
    return render_template("audits", race, cards=cards, audits=audits, families=(audits, succeeded))


def draw_claim(audit: Audit, arm: int, name: str) -> Picture | None:
    """Draw the speed-up on each axis with its interval, a line at 1, and the factors that satisfy the claim.

    None without a speed-up.
    """
    gains = {axis: gain for axis in AXES if (gain := (audit.gains or {}).get(axis)) and gain.estimate}
    if not gains:
        return None
    lines: dict[str, words.AxisLine] = dict(zip(AXES, words.axis_lines(audit), strict=True))
    rows = [_row(arm, gain) for gain in gains.values()]
    limits = _limits(audit, list(gains.values()))
    with svg.style():
        figure = Figure(figsize=(WIDTH, 0.7 * row_height() * len(rows) + 0.75))
        axes = figure.subplots()
        _draw_claim(axes, audit, limits)
        draw_strip(axes, rows, limits)
        axes.set_yticks(range(len(rows)), [_name(lines[axis]) for axis in gains])
        axes.tick_params(axis="y", length=0)
        set_log_ticks(axes.xaxis, limits, 5, "{:g}×")
        # The claim above the figure names the baseline, whose label may be wider than the figure.
        axes.set_xlabel("speed-up, log scale")
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.34, right=0.97, top=1 - 0.08 / height, bottom=0.47 / height)
        return Picture(figure, name, f"speed-ups of {audit.claim.name} with intervals, and what is claimed")


def draw_looks(audit: Audit, arm: int, name: str) -> Picture | None:
    """Draw the interval of each look of a sequential claim, and in grey the interval of a single look.

    None before the first look with an interval.
    """
    seen = [(look.n, look.critical, look.gain) for look in audit.looks if look.gain and look.gain.estimate]
    shown = [(n, gain) for n, _, gain in seen if gain.low is not None]
    if not shown:
        return None
    rows = [_row(arm, gain) for _, gain in shown]
    names = [f"{n} pairs" for n, _ in shown]
    n, critical, last = seen[-1]
    if math.isfinite(critical):
        once = with_critical(last, student(n - 1, audit.claim.confidence))
        rows.append(replace(_row(arm, once), arm=None))
        names.append("judged once")
    limits = _limits(audit, [gain for _, gain in shown])
    with svg.style():
        figure = Figure(figsize=(WIDTH, 0.7 * row_height() * len(rows) + 0.75))
        axes = figure.subplots()
        _draw_claim(axes, audit, limits)
        draw_strip(axes, rows, limits)
        axes.set_yticks(range(len(rows)), names)
        axes.tick_params(axis="y", length=0)
        if len(names) > len(shown):
            axes.get_yticklabels()[-1].set_color(MUTED)
        set_log_ticks(axes.xaxis, limits, 5, "{:g}×")
        axes.set_xlabel("speed-up at each look, log scale")
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.34, right=0.97, top=1 - 0.08 / height, bottom=0.47 / height)
        return Picture(figure, name, f"intervals of {audit.claim.name} at each look, and what is claimed")


def _card(race: Race, audit: Audit, number: int) -> dict[str, Any]:
    arm = race.arms.index(find_arm(race.arms, audit.claim.candidate))
    drawn = draw_claim(audit, arm, f"claim-{number}")
    looks = draw_looks(audit, arm, f"looks-{number}")
    return {
        "name": audit.claim.name,
        "claimed": words.claimed(audit),
        "verdict": audit.verdict,
        "mark": MARKS[audit.verdict],
        "because": words.because(audit),
        "lines": [(_name(line), line) for line in words.axis_lines(audit)],
        "picture": None if drawn is None else Markup(svg.inline(drawn)),
        "looks": None if looks is None else Markup(svg.inline(looks)),
        "facts": words.facts(audit),
        "notes": words.notes(audit),
    }


def _success_card(audit: SuccessAudit) -> dict[str, Any]:
    return {
        "name": audit.claim.name,
        "claimed": claimed_success(audit),
        "verdict": audit.verdict,
        "mark": MARKS[audit.verdict],
        "because": audit.reason,
        "shares": success_lines(audit),
        "facts": success_facts(audit),
    }


def _name(line: words.AxisLine) -> str:
    return line.name + " *" * line.claimed


def _row(arm: int, gain: Speedup) -> StripRow:
    return StripRow("", arm, "", gain.estimate, gain.low, gain.high, resolved=gain.direction != "unresolved")


def _limits(audit: Audit, gains: Sequence[Speedup]) -> tuple[float, float]:
    """Return limits around the estimates, 1 and the claim; ends of intervals extend them at most fourfold."""
    near = [gain.factor for gain in gains] + [1.0, audit.claim.low, audit.claim.factor]
    least, most = min(near) / 4, max(near) * 4
    return padded(
        near + [end for gain in gains for end in (gain.low, gain.high) if end and least < end < most]
    )


def _draw_claim(axes: Axes, audit: Audit, limits: tuple[float, float]) -> None:
    """Draw the factors that satisfy the claim as a band, up to the edge if they are unbounded."""
    low, high = audit.claim.low, min(audit.claim.high, limits[1])
    axes.axvspan(low, high, color=MUTED, alpha=0.13, linewidth=0)
    axes.axvline(1, color=MUTED, linewidth=0.8)
