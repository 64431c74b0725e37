"""Thumbnails of cards as SVG: the curves of a study, or the intervals of its speed-ups without curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

from reports.gallery.study import ArmTable, objective, settings
from reports.logs.curves import LogCurve

WIDTH, HEIGHT, ROW = 340.0, 190.0, 15.0
LEFT, RIGHT, TOP, BOTTOM = 6.0, 6.0, 8.0, 20.0
MOST_ROWS, MOST_CURVES, MOST_POINTS = 24, 80, 60
WIDEST = 3.0
"""The largest factor of the scale of speed-ups; intervals beyond it are cut."""
COLOURS = 8
LETTERS = 26
"""Letters of a label."""


@dataclass(frozen=True)
class Scale:
    """A logarithmic scale of a drawing."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / (math.log(self.high / self.low) or 1.0)
        return self.start + share * (self.end - self.start)


class Drawing(NamedTuple):
    """A thumbnail and its caption."""

    svg: Markup
    caption: str


def draw_gains(table: ArmTable, axis: str = "steps") -> Drawing:
    """Return the speed-ups with their intervals, the fastest first, on a log scale with a line at 1."""
    compared = table.compared(axis)
    rows = compared[:MOST_ROWS]
    ends = [end for row in rows if row.gain for end in (row.gain.low, row.gain.high, row.gain.estimate)]
    reach = max([1.5, *(max(end, 1 / end) for end in ends if end and math.isfinite(end))])
    reach = min(reach, WIDEST) * 1.05
    x = Scale(1 / reach, reach, WIDTH * 0.42, WIDTH - RIGHT)
    height = TOP + ROW * len(rows) + BOTTOM
    body = [_line(x.at(1), TOP, x.at(1), height - BOTTOM, "rule")]
    for place, row in enumerate(rows):
        y, gain = TOP + ROW * (place + 0.5), row.gain
        body.append(_text(WIDTH * 0.4, y + 3.5, _short(row.method), "end"))
        if gain is None or gain.low is None or gain.high is None:
            continue
        low, high = (x.at(min(max(end, 1 / reach), reach)) for end in (gain.low, gain.high))
        body.append(_line(low, y, high, y, gain.direction))
        if gain.estimate is not None and 1 / reach <= gain.estimate <= reach:
            place_x = x.at(gain.estimate)
            body.append(f'<circle class="{gain.direction}" cx="{place_x:.1f}" cy="{y:.1f}" r="3"/>')
    ticks = ((1 / reach, "start"), (1.0, "middle"), (reach, "end"))
    body += [_text(x.at(tick), height - 6, f"{tick:.2g}×", anchor) for tick, anchor in ticks]
    hidden = len(compared) - len(rows)
    if hidden:
        body.append(_text(LEFT, height - 6, f"and {hidden} slower", "start"))
    return _drawing(height, f"Speed-ups in {axis} with 95 % intervals", body)


def draw_curves(curves: Sequence[LogCurve], target: float | None, metric: str) -> Drawing | None:
    """Return the curves of the runs on log scales, coloured by method, with a line at the target.

    The first seeds of each method are drawn if there are many runs. None if no run has two points.
    """
    lines = [
        (curve.method, [(p.step, p.value) for p in curve.points if p.step > 0 and p.value > 0])
        for curve in sorted(curves, key=lambda curve: curve.seed)
    ]
    found = [(method, points) for method, points in lines if len(points) > 1]
    lines = found[:MOST_CURVES]
    if not lines:
        return None
    steps = [step for _, points in lines for step, _ in points]
    values = [value for _, points in lines for _, value in points] + ([target] if target else [])
    x = Scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    y = Scale(min(values), max(values), HEIGHT - BOTTOM, TOP)
    methods = list(dict.fromkeys(method for method, _ in lines))
    body = []
    if target:
        body.append(_line(LEFT, y.at(target), WIDTH - RIGHT, y.at(target), "target"))
    for method, points in lines:
        path = " ".join(f"{x.at(step):.1f},{y.at(value):.1f}" for step, value in thinned(points))
        body.append(f'<polyline class="arm{methods.index(method) % COLOURS}" points="{path}"/>')
    body.append(_text(LEFT, HEIGHT - 6, f"step {min(steps):,}", "start"))
    body.append(_text(WIDTH - RIGHT, HEIGHT - 6, f"{max(steps):,}", "end"))
    which = "every run" if len(lines) == len(found) else f"{len(lines)} of {len(found)} runs"
    return _drawing(HEIGHT, f"{metric} against steps, {which}", body)


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most `MOST_POINTS` points of a curve and its last one."""
    every = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:every], points[-1]]


def _drawing(height: float, caption: str, body: Sequence[str]) -> Drawing:
    head = f'<svg class="thumbnail" viewBox="0 0 {WIDTH:g} {height:g}" role="img" '
    return Drawing(Markup(f'{head}aria-label="{escape(caption)}">{"".join(body)}</svg>'), caption)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(label: str) -> str:
    """Return an arm's label with the values of its settings, cut to the room on the left."""
    values = (one.rpartition(" = ")[2] for one in settings(label))
    text = " ".join([objective(label), ", ".join(values)]).strip()
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"
