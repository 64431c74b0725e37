"""Scatter plots of quality and speed against the encoder or the size of the backbone, with their trends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.analysis.report import RaceReport
from reports.analysis.scaling import YS, Scaling, ScalingPoint
from reports.figures.layout import BROAD, Entry, fill, grey_line, grey_mark, padded, width_name
from reports.figures.strips import set_log_ticks
from reports.figures.svg import ARMS, MUTED, PAPER, Picture, style
from reports.pages.section import drawings, render_template
from reports.race.race import Race
from reports.stats.correlation import Rank, Slope
from reports.stats.number_format import digits, factor, interval
from reports.stats.speedup import MeanTime, Speedup, closed_ends

X_NAMES = {
    "params": "parameters",
    "accuracy": "probe accuracy",
    "cknna": "CKNNA",
    "local_distant": "local − distant",
}
MARKS = {"o": "●", "^": "▲", "D": "◆", "v": "▼", "s": "■", "*": "★"}
"""Marks of the groups in figures, and in the legend; their shapes distinguish groups without colour."""
PANEL = 1.75
"""The height of a panel, in inches."""


def encoder_section(report: RaceReport) -> Markup | None:
    """Return the section on encoders; None for a race with fewer than two of them."""
    scaling = report.encoder_scaling
    return None if scaling is None else _section(report.race, scaling, "encoders")


def size_section(report: RaceReport) -> Markup | None:
    """Return the section on sizes of the backbone; None for a race with fewer than two of them."""
    scaling = report.model_scaling
    return None if scaling is None else _section(report.race, scaling, "sizes")


def _section(race: Race, found: Scaling, name: str) -> Markup:
    return render_template(
        "scaling",
        race,
        name=name,
        pictures=drawings(partial(draw_scaling, race, found, name)),
        groups=[(_look(index), group) for index, group in enumerate(groups(found))],
        controls=controls(found),
        random=any(point.kind == "random" for point in found.points),
        trends=trend_rows(found, race),
        points=point_rows(found, race),
        xs=[X_NAMES[x] for x in found.xs],
        protocol=found.protocol,
        folder=race.runs[0].record.path.parent,
        bounded=sum(point.time is not None and point.time.right > 0 for point in found.points),
    )


def draw_scaling(race: Race, found: Scaling, name: str, width: float) -> Picture:
    """Draw a panel for each y (rows) and x (columns); at most two columns on a narrow page."""
    panels = [(x, y) for y in YS for x in found.xs if any(point.y(y) is not None for point in found.points)]
    columns = _columns(len(found.xs), width)
    rows = math.ceil(len(panels) / columns)
    with style():
        figure = Figure(figsize=(width, PANEL * rows + 0.1))
        every = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (x, y) in zip(every, panels, strict=False):
            _draw(axes, found, x, y)
            _label(axes, race, found, x, y)
        for axes in list(every)[len(panels) :]:
            axes.set_axis_off()
        fill(figure, left=0.62, top=0.1, hspace=0.5, entries=_entries(found))
        figure.subplots_adjust(wspace=0.62)
        xs = ", ".join(X_NAMES[x] for x in found.xs)
        description = f"{race.metric}, steps to target and speed-up against {xs}"
        return Picture(figure, f"{name}-{width_name(width)}", description)


def _entries(found: Scaling) -> list[Entry]:
    """Return the legend of the groups, of random encoders and of arms without an x."""
    marks = list(MARKS)
    entries: list[Entry] = []
    for index, group in enumerate(groups(found)):
        colour = ARMS[(index + 1) % len(ARMS)]
        look = {"linestyle": "none", "color": colour, "markersize": 4.5}
        entries.append((Line2D([], [], marker=marks[index % len(marks)], **look), group))
    if any(point.kind == "random" for point in found.points):
        entries.append(grey_mark("o", "random weights", filled=False))
    if controls(found):
        entries.append(grey_line(", ".join(controls(found)), dashes=(4, 2)))
    return [*entries, grey_line("95 % interval")]


def groups(found: Scaling) -> list[str]:
    """Return the groups of points with an x, in order; each has a colour and a mark."""
    return list(dict.fromkeys(point.group for point in found.points if point.x))


def controls(found: Scaling) -> list[str]:
    """Return the arms without an x, which are drawn as lines."""
    return [point.arm for point in found.points if not point.x]


def trend_rows(found: Scaling, race: Race) -> list[dict[str, Any]]:
    """Return each trend as texts."""
    return [
        {
            "group": trend.group,
            "y": _y_name(race, trend.y),
            "x": X_NAMES[trend.x],
            "rank": rank_text(trend.rank),
            "with_random": rank_text(trend.with_random) if trend.with_random else "",
            "p": "" if trend.rank.p is None else f"{trend.rank.p:.2g}",
            "without": _range(trend.rank.without),
            "slope": slope_text(trend.slope, trend.x),
            "bounded": trend.bounded,
        }
        for trend in found.trends
    ]


def point_rows(found: Scaling, race: Race) -> list[dict[str, Any]]:
    """Return each point as texts."""
    return [
        {
            "arm": point.arm,
            "kind": {"trained": "", "random": "random weights", "none": "no encoder"}[point.kind],
            "xs": [_x_text(x, point.x.get(x)) for x in found.xs],
            "final": "" if point.final is None else _mean_text(point.final),
            "time": "" if point.time is None else ("> " if point.time.right else "") + _mean_text(point.time),
            "gain": "" if point.gain is None or point.gain.estimate is None else _gain_text(point.gain),
        }
        for point in found.points
    ]


def rank_text(rank: Rank) -> str:
    """Return `0.80 [-0.28, 0.99], n = 5`, without brackets if the interval is unknown."""
    if rank.rho is None:
        return f"undefined, n = {rank.n}"
    ends = "" if rank.low is None else f" [{rank.low:.2f}, {rank.high:.2f}]"
    return f"{rank.rho:.2f}{ends}, n = {rank.n}".replace("-", "−")


def slope_text(slope: Slope | None, x: str) -> str:
    """Return the factor of y for ten times the parameters, or for +0.1 of another x."""
    if slope is None:
        return ""
    step = math.log(10) if x == "params" else 0.1
    times = [None if v is None else math.exp(v * step) for v in (slope.estimate, slope.low, slope.high)]
    if not all(v is None or 1e-3 < v < 1e3 for v in times):
        return "undetermined"
    estimate, low, high = times
    ends = "" if low is None or high is None else f" [{factor(low)}, {factor(high)}]"
    per = "tenfold" if x == "params" else "+0.1"
    return f"×{'' if estimate is None else factor(estimate)}{ends} per {per}"


def _look(index: int) -> dict[str, str]:
    """Return the mark and the colour variable of a group in the legend."""
    return {"mark": list(MARKS.values())[index % len(MARKS)], "colour": f"arm{(index + 1) % len(ARMS)}"}


def _columns(xs: int, width: float) -> int:
    return (xs if xs > 1 else len(YS)) if width >= BROAD else min(xs, 2)


def _draw(axes: Axes, found: Scaling, x: str, y: str) -> None:
    shown = [point for point in found.points if point.y(y) is not None]
    for value in {value for point in shown if not point.x and (value := point.y(y)) is not None}:
        axes.axhline(value, color=MUTED, linewidth=0.9, dashes=(4, 2), zorder=1)
    if y == "gain":
        axes.axhline(1, color=MUTED, linewidth=0.6, zorder=0)
    for index, group in enumerate(groups(found)):
        points = [point for point in shown if point.group == group and x in point.x]
        for kind in ("trained", "random"):
            _mark(axes, [point for point in points if point.kind == kind], x, y, index)


def _mark(axes: Axes, points: Sequence[ScalingPoint], x: str, y: str, index: int) -> None:
    """Draw points, filled for trained encoders and open for random ones, and the closed intervals."""
    if not points:
        return
    colour = ARMS[(index + 1) % len(ARMS)]
    known = [(p.x[x], *ends) for p in points if len(ends := _ends(p, y, beyond=math.inf)) == 2]
    if known:
        axes.vlines(*zip(*known, strict=True), color=colour, linewidth=0.8, zorder=2)
    face = PAPER if points[0].kind == "random" else colour
    look = {"markerfacecolor": face, "markeredgecolor": colour, "markeredgewidth": 1.1, "markersize": 4.5}
    shown = [(point.x[x], value) for point in points if (value := point.y(y)) is not None]
    axes.plot(*zip(*shown, strict=True), list(MARKS)[index % len(MARKS)], linestyle="none", zorder=3, **look)


def _label(axes: Axes, race: Race, found: Scaling, x: str, y: str) -> None:
    shown = [point for point in found.points if x in point.x and point.y(y) is not None]
    values = [value for point in found.points if (value := point.y(y)) is not None]
    ends = [end for point in shown for end in _ends(point, y)]
    axes.set(yscale="log", ylim=padded([*values, *ends]), xlabel=X_NAMES[x], ylabel=_y_name(race, y))
    set_log_ticks(axes.yaxis, axes.get_ylim(), 5, "{:g}×" if y == "gain" else "{:g}")
    if x == "params" and shown:
        limits = padded([point.x[x] for point in shown])
        axes.set(xscale="log", xlim=limits)
        axes.xaxis.set_major_formatter(lambda value, _: _count(value))
        axes.xaxis.minorticks_off()
    else:
        axes.locator_params(axis="x", nbins=3)
    axes.grid(True, axis="y")


def _ends(point: ScalingPoint, y: str, *, beyond: float = 3) -> Sequence[float]:
    """Return the ends of the interval within a factor of the estimate; axes show ends up to threefold."""
    result = {"final": point.final, "time": point.time, "gain": point.gain}[y]
    value = result.estimate
    return [end for end in (result.low, result.high) if end and value / beyond < end < value * beyond]


def _y_name(race: Race, y: str) -> str:
    return {"final": f"last {race.metric}", "time": "steps to target", "gain": "speed-up, steps"}[y]


def _x_text(x: str, value: float | None) -> str:
    if value is None:
        return ""
    return _count(value) if x == "params" else f"{value:.3f}".replace("-", "−")


def _count(value: float) -> str:
    size, unit = next(((s, u) for s, u in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if value >= s), (1.0, ""))
    return f"{value / size:.3g}{unit}"


def _mean_text(mean: MeanTime) -> str:
    """Return a mean with its interval, unless an end is open: the row marks it as a bound."""
    closed = closed_ends(mean)
    ends = f" [{digits(closed[0])}, {digits(closed[1])}]" if closed else ""
    return f"{digits(mean.estimate)}{ends}"


def _gain_text(gain: Speedup) -> str:
    return f"{factor(gain.factor)}× {interval(gain.low, gain.high)}".rstrip()


def _range(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}".replace("-", "−")
