"""Strips: rows of intervals on a log scale, with labels inside the axes; and round ticks for log scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reports.figures.layout import SLACK, Entry, grey_mark, text_width
from reports.figures.svg import ARMS, INK, MUTED, PAPER, scaled, small
from reports.stats.crossing import Censored
from reports.stats.speedup import Time

ROW = 0.36
"""The height of a row, in inches."""
_MARKS: dict[Censored, tuple[str, float]] = {None: ("o", 3.4), "left": ("<", 5), "right": (">", 5)}
_SERIES = (
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)


@dataclass(frozen=True)
class StripRow:
    """One row: a label on the left, a text on the right, and below them an interval and dots."""

    label: str
    arm: int | None = None
    """The arm whose colour the row has; None for a heading."""
    text: str = ""
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    dots: tuple[Time, ...] = ()
    resolved: bool = True
    """False for an effect whose interval contains 1: its diamond is open."""


def draw_strip(axes: Axes, rows: Sequence[StripRow], limits: tuple[float, float]) -> None:
    """Draw rows from top to bottom; an interval that goes beyond the limits ends in an arrow."""
    axes.set(xscale="log", xlim=limits, ylim=(len(rows) - 0.35, -0.85), yticks=[])
    axes.spines["left"].set_visible(False)
    for y, row in enumerate(rows):
        colour = MUTED if row.arm is None else ARMS[row.arm % len(ARMS)]
        ink = MUTED if row.arm is None else INK
        # The background keeps the line at 1 from striking through the text.
        background = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.5}
        look = {"transform": axes.get_yaxis_transform(), "fontsize": small(), "color": ink, "va": "bottom"}
        look |= {"bbox": background}
        place = y - 0.22 if row.dots or row.estimate else y + 0.1
        axes.text(0, place, _clipped(row.label, axes, row.text), weight=_weight(row), **look)
        axes.text(1, y - 0.22, row.text, ha="right", **look)
        _draw_interval(axes, y, row, colour, limits)
        draw_dots(axes, row.dots, y, colour)
        if row.estimate is not None:
            open_ = {"markerfacecolor": PAPER, "markeredgecolor": colour, "markeredgewidth": 1.2}
            filled = {"markeredgecolor": PAPER, "markeredgewidth": 0.7}
            look = filled if row.resolved else open_
            axes.plot(row.estimate, y, "D", color=colour, markersize=5, zorder=5, **look)


def row_height() -> float:
    """Return the height of a row in inches, which grows with the font."""
    return scaled(ROW)


def strip_entries(rows: Sequence[StripRow], what: str) -> list[Entry]:
    """Return the legend of the marks in these rows; `what` names the estimates."""
    shown = [row for row in rows if row.estimate is not None]
    found: list[Entry] = []
    if any(row.resolved for row in shown):
        found.append(grey_mark("D", f"{what}, 95 % interval", filled=True))
    if any(not row.resolved for row in shown):
        found.append(grey_mark("D", "interval contains 1", filled=False))
    if any(row.low == 0 or (row.high is not None and math.isinf(row.high)) for row in shown):
        found.append(grey_mark(">", "open end of an interval", filled=True, size=4))
    if any(row.dots for row in rows):
        found += dot_entries([dot for row in rows for dot in row.dots])
    return found


def dot_entries(times: Sequence[Time]) -> list[Entry]:
    """Return the legend of these times of single runs."""
    kinds = {time.censored for time in times}
    names: dict[Censored, str] = {
        None: "time to target of a seed",
        "right": "target not reached by then",
        "left": "reached at first evaluation",
    }
    return [
        grey_mark(_MARKS[kind][0], name, filled=kind is None, size=_MARKS[kind][1])
        for kind, name in names.items()
        if kind in kinds
    ]


def draw_dots(axes: Axes, times: Sequence[Time], y: float, colour: str) -> None:
    """Draw the times of runs at a height; a censored time is an open triangle that points to the true one."""
    for kind, (marker, size) in _MARKS.items():
        values = [time.value for time in times if time.censored == kind]
        if not values:
            continue
        face = {
            "markerfacecolor": PAPER if kind else colour,
            "markeredgecolor": colour,
            "markeredgewidth": 0.7,
        }
        look = {"linestyle": "none", "markersize": size, "alpha": 0.85, "clip_on": False, "zorder": 4}
        axes.plot(values, [y] * len(values), marker, **look, **face)


def set_log_ticks(axis: Axis, limits: tuple[float, float], most: int, form: str = "{:,.10g}") -> None:
    """Show plain numbers at round values of a log scale, at most `most` of them."""
    axis.set_major_locator(FixedLocator(log_ticks(*limits, most)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))
    axis.set_minor_locator(NullLocator())


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return round values between two limits, from the densest series that has at most `most` of them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in _SERIES:
        ticks = [float(f"{m}e{d}") for d in decades for m in mantissas if low <= float(f"{m}e{d}") <= high]
        if len(ticks) <= most:
            return ticks
    return [10.0**d for d in decades if d % math.ceil(len(decades) / most) == 0]


def _draw_interval(axes: Axes, y: int, row: StripRow, colour: str, limits: tuple[float, float]) -> None:
    if row.low is None or row.high is None:
        return
    left, right = max(row.low, limits[0]), min(row.high, limits[1])
    axes.plot([left, right], [y, y], color=colour, linewidth=1.4)
    if row.low < left:
        axes.plot(left, y, "<", color=colour, markersize=4, clip_on=False)
    if row.high > right:
        axes.plot(right, y, ">", color=colour, markersize=4, clip_on=False)


def _clipped(label: str, axes: Axes, text: str) -> str:
    """Return a label cut to the room that the text on the right leaves; the legend has it in full."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    # Margins on both sides, and a viewer's font that may be wider.
    room = (figure.get_figwidth() - scaled(0.75)) / SLACK - text_width(text) - 0.1
    if text_width(label) <= room:
        return label
    letters = max(int(len(label) * room / text_width(label)) - 1, 4)
    return label[:letters] + "…"


def _weight(row: StripRow) -> str:
    return "bold" if row.arm is None else "normal"
