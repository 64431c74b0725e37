"""The figures of a race: convergence with times to target, speed-ups, and cost by phase.

Each is drawn once for wide and once for narrow pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harness.records.record import TRAINING_PHASES
from reports.figures.chart_data import allowance, mean_band, thin
from reports.figures.layout import (
    Entry,
    band_entry,
    faintness,
    fill,
    grey_line,
    line_entry,
    padded,
    target_entry,
    ticks,
    width_name,
)
from reports.figures.strips import (
    StripRow,
    dot_entries,
    draw_dots,
    draw_strip,
    row_height,
    set_log_ticks,
    strip_entries,
)
from reports.figures.svg import ARMS, DASHES, INK, MUTED, PAPER, Picture, scaled, small, style
from reports.race.by_target import SpeedupByTarget
from reports.race.race import Race
from reports.race.run import RaceRun
from reports.race.verdict import goal
from reports.stats.number_format import digits, gain_suffix, quantity, unit_of
from reports.stats.speedup import Speedup, Time, closed_ends

Look = dict[str, Any]
"""Keyword arguments of a drawing call, of various types."""
AXIS_NAMES = {
    "steps": "steps",
    "images": "images",
    "flops": "training FLOPs",
    "seconds": "training time",
    "gpu_seconds": "device time",
}
PHASES: dict[str, str] = dict(
    zip(TRAINING_PHASES, ("#9a9aa3", "#3b6ea5", "#c98a2b", "#7a9a3a", "#8f6a95", "#c2605a"), strict=True)
)
BAR = 0.5
"""The height of a bar of the cost figure with its label, in inches."""
POINTS = 3_000
"""Points of all measured curves of one printed figure."""
MEAN_POINTS = 900
"""Points of all mean curves of one printed figure, at most an eighth for each."""
FEW = 60
"""The largest number of evaluations of a run that are each marked by a dot."""


def draw_convergence(race: Race, axis: str, width: float) -> Picture:
    """Draw every seed (thin), the mean fit (bold), the target and the crossings; below them, the times to
    target with intervals."""
    size, unit = unit_of(axis, max(run.costs.budget(axis) for run in race.runs if run.evaluated))
    rows, (limits, reach) = time_rows(race, axis, size), _limits(race, axis, size)
    heights = [0.42 * width + 0.5, row_height() * len(rows) + 0.25][: 2 if rows else 1]
    with style():
        figure = Figure(figsize=(width, sum(heights) + 0.75))
        panels = figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        top, bottom = panels[0], panels[-1]
        top.set(xscale="log", yscale="log", xlim=limits, ylim=reach, ylabel=f"{race.metric}, log scale")
        for index, arm in enumerate(race.arms):
            most = allowance(race, POINTS), max(MEAN_POINTS // max(len(race.arms), 8), 30)
            _draw_arm(top, race.of(arm.label), index, axis, size, most, faintness(len(race.arms)))
        if race.target is not None:
            _draw_target(top, race, race.target, axis, size)
        if rows:
            draw_strip(bottom, rows, limits)
        set_log_ticks(top.yaxis, reach, 7)
        set_log_ticks(bottom.xaxis, limits, ticks(width))
        bottom.set_xlabel(f"{AXIS_NAMES[axis]}{f' ({unit})' if unit else ''}, log scale")
        top.grid(True, axis="y")
        fill(figure, left=0.62, hspace=0.06, entries=_convergence_entries(race, axis, rows))
        return Picture(
            figure,
            f"convergence-{axis}-{width_name(width)}",
            f"{race.metric} against {AXIS_NAMES[axis]} by arm",
        )


def draw_forest(race: Race, width: float) -> Picture:
    """Draw the speed-up over the baseline with its interval, by axis and candidate."""
    rows = [row for axis in race.axes for row in _gain_rows(race, axis)]
    with style():
        figure = Figure(figsize=(width, row_height() * len(rows) + 0.7))
        draw_gains(figure.subplots(), rows, width, race.reference)
        fill(figure, left=0.12, entries=strip_entries(rows, "geometric mean"))
        return Picture(
            figure, f"speedup-{width_name(width)}", f"speed-ups over {race.reference} with intervals"
        )


def draw_targets(race: Race, axis: str, by_target: SpeedupByTarget, width: float) -> Picture:
    """Draw the speed-up over the baseline with its interval, as the target falls from easy to hard."""
    at, gains = by_target.targets, by_target.gains[axis]
    ends = [g for own in gains.values() for gain in own for g in (gain.estimate, gain.low, gain.high)]
    reach = padded([end for end in ends if end and math.isfinite(end)] + [1.0])
    with style():
        figure = Figure(figsize=(width, 0.36 * width + 0.7))
        axes = figure.subplots()
        axes.axhline(1, color=MUTED, linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlim=padded(at)[::-1], ylim=reach)
        for index, arm in enumerate(race.arms):
            _draw_gains(axes, at, gains.get(arm.label, ()), index, faintness(len(gains)))
        if race.target is not None:
            axes.axvline(race.target, color=INK, linewidth=0.7, dashes=(3, 2))
        set_log_ticks(axes.yaxis, reach, 7, "{:g}×")
        set_log_ticks(axes.xaxis, padded(at), ticks(width))
        axes.set(
            xlabel=f"target {race.metric}, harder to the right, log scale",
            ylabel=f"speed-up in {AXIS_NAMES[axis]}",
        )
        axes.grid(True, axis="y")
        fill(figure, left=0.68, entries=_target_entries(race, by_target, axis))
        return Picture(
            figure, f"targets-{axis}-{width_name(width)}", f"speed-up in {AXIS_NAMES[axis]} by target"
        )


def draw_cost(race: Race, width: float) -> Picture:
    """Draw the seconds of one training step by phase, averaged over the runs of an arm."""
    means = {arm.label: phase_seconds(race.of(arm.label)) for arm in race.arms}
    means = {label: phases for label, phases in means.items() if phases}
    size, unit = unit_of("seconds", max(sum(phases.values()) for phases in means.values()))
    with style():
        figure = Figure(figsize=(width, scaled(BAR) * len(means) + 0.55))
        axes = figure.subplots()
        for y, (label, phases) in enumerate(means.items()):
            _draw_bar(axes, y, {phase: seconds / size for phase, seconds in phases.items()})
            look = {"transform": axes.get_yaxis_transform(), "va": "bottom", "fontsize": small()}
            axes.text(0, y - 0.26, label, **look)
            axes.text(1, y - 0.26, f"{digits(sum(phases.values()) / size)} {unit}", ha="right", **look)
        axes.set(ylim=(len(means) - 0.6, -0.75), yticks=[], xlabel=f"time of one training step ({unit})")
        axes.spines["left"].set_visible(False)
        shown = [phase for phase in PHASES if any(phases.get(phase) for phases in means.values())]
        entries: list[Entry] = [(Patch(facecolor=PHASES[phase], linewidth=0), phase) for phase in shown]
        fill(figure, left=0.12, entries=entries)
        return Picture(
            figure, f"cost-{width_name(width)}", "time of one training step by phase, for each arm"
        )


def time_rows(race: Race, axis: str, size: float) -> list[StripRow]:
    """Return the times to target of each arm as rows of a strip, in units of `size`.

    An arm that never reached the target has only dots.
    """
    rows, unit = [], unit_of(axis, size)[1]
    for index, arm in enumerate(race.arms):
        time, gain = race.times.get((axis, arm.label)), race.speedups.get((axis, arm.label))
        if time is None:
            continue
        dots = tuple(Time(t.value / size, t.censored) for t in _times(race, arm.label, axis))
        value = quantity(axis, time.estimate) if axis == "steps" else f"{digits(time.estimate / size)} {unit}"
        text = ("> " if time.right == time.n else "") + value.rstrip() + gain_suffix(gain)
        if time.right == time.n:
            rows.append(StripRow(arm.label, index, text, dots=dots))
            continue
        low, high = (None if end is None else end / size for end in (time.low, time.high))
        rows.append(StripRow(arm.label, index, text, time.estimate / size, low, high, dots))
    return rows


def phase_seconds(runs: Sequence[RaceRun]) -> dict[str, float]:
    """Return the seconds of a step by training phase, averaged over runs with `train` events; empty without
    any."""
    last = [event for run in runs if (event := run.record.last_trained)]
    return {
        phase: float(np.mean([event["seconds"].get(phase, 0.0) / event["step"] for event in last]))
        for phase in TRAINING_PHASES
        if any(event["seconds"].get(phase) for event in last)
    }


def gain_row(label: str, index: int, gain: Speedup) -> StripRow:
    """Return a speed-up as a row of a strip, with an open diamond if its interval contains 1."""
    resolved = gain.direction != "unresolved"
    return StripRow(
        label, index, gain_suffix(gain).lstrip(" ·"), gain.estimate, gain.low, gain.high, resolved=resolved
    )


def draw_gains(axes: Axes, rows: Sequence[StripRow], width: float, baseline: str) -> None:
    """Draw rows of speed-ups on a log scale of factors, with a line at 1."""
    limits = padded(
        [v for row in rows for v in (row.estimate, row.low, row.high) if v and math.isfinite(v)] + [1.0]
    )
    axes.axvline(1, color=MUTED, linewidth=0.8)
    draw_strip(axes, rows, limits)
    set_log_ticks(axes.xaxis, limits, ticks(width), "{:g}×")
    axes.set_xlabel(f"speed-up over {baseline}, log scale")


def _gain_rows(race: Race, axis: str) -> list[StripRow]:
    rows = []
    for index, arm in enumerate(race.arms):
        gain = race.speedups.get((axis, arm.label))
        if gain is not None and gain.estimate is not None:
            rows.append(gain_row(arm.label, index, gain))
    return [StripRow(f"in {AXIS_NAMES[axis]}"), *rows] if rows else []


def _convergence_entries(race: Race, axis: str, rows: Sequence[StripRow]) -> list[Entry]:
    """Return the legend of the curves, of the target and of the marks."""
    shown = {run.arm for run in race.runs if run.evaluated}
    drawn = {
        arm.label: sum(run.done for run in race.of(arm.label)) for arm in race.arms if arm.label in shown
    }
    found = [line_entry(index, arm.label) for index, arm in enumerate(race.arms) if arm.label in drawn]
    found.append(grey_line("one seed, as measured", linewidth=0.6, marker="o", markersize=1.8))
    if any(count > 1 for count in drawn.values()):
        found.append(band_entry("mean fit, 95 % interval"))
    if race.target is not None:
        found.append(target_entry(goal(race)))
        found += dot_entries([time for arm in race.arms for time in _times(race, arm.label, axis)])
    marks = strip_entries([replace(row, dots=()) for row in rows], "mean time to target")
    return found + marks


def _target_entries(race: Race, by_target: SpeedupByTarget, axis: str) -> list[Entry]:
    shown = by_target.gains[axis]
    found = [line_entry(index, arm.label) for index, arm in enumerate(race.arms) if arm.label in shown]
    if any(closed_ends(gain) for gains in shown.values() for gain in gains):
        found.append(band_entry("95 % interval"))
    return found + ([target_entry(goal(race))] if race.target is not None else [])


def _limits(race: Race, axis: str, size: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return limits of the axis (in units of `size`) and of the metric that contain everything drawn."""
    runs = [run for run in race.runs if run.evaluated]
    reached = [run.costs.at(axis, step) / size for run in runs for step in run.curve.steps[[0, -1]]]
    values = [end for run in runs for end in (run.curve.measured.min(), run.curve.measured.max())]
    # An imported run begins at no cost, which a log scale does not have.
    reached = [place for place in reached if place > 0] or [1.0]
    return padded(reached), padded(values + ([] if race.target is None else [race.target]))


def _draw_arm(
    axes: Axes,
    runs: Sequence[RaceRun],
    index: int,
    axis: str,
    size: float,
    most: tuple[int, int],
    faint: float,
) -> None:
    """Draw an arm. `most` is the maximum number of points of a measured curve and of a mean, `faint` the
    opacity of the band."""
    colour = ARMS[index % len(ARMS)]
    look: Look = {"linewidth": 0.6, "alpha": 0.55, "color": colour}
    evaluated = [run for run in runs if run.evaluated]
    for few, own in groupby(evaluated, lambda run: len(run.curve.steps) <= FEW):
        lines = [_measured(run, axis, size, most[0]) for run in own]
        if few:
            for line in lines:
                axes.plot(*line.T, marker="o", markersize=1.8, markeredgewidth=0, **look)
        else:
            # Hundreds of separate lines would take most of the time of a page.
            axes.add_collection(LineCollection(lines, capstyle="round", zorder=2, **look), autolim=False)
    counted = [run for run in runs if run.done]
    if counted:
        steps, mean, low, high = mean_band(counted)
        kept = thin(steps, mean, most[1])
        x = np.exp(np.mean([np.log(run.costs.at_each(axis, steps[kept])) for run in counted], axis=0)) / size
        dashes = DASHES[index % len(DASHES)] or (None, None)
        if len(counted) > 1:
            axes.fill_between(x, low[kept], high[kept], alpha=faint, linewidth=0, color=colour)
        axes.plot(x, mean[kept], linewidth=1.8, dashes=dashes, color=colour)


def _measured(run: RaceRun, axis: str, size: float, most: int) -> np.ndarray:
    """Return the points of a measured curve, of which at most `most` are kept."""
    kept = thin(run.curve.steps, run.curve.measured, most)
    return np.column_stack([run.costs.at_each(axis, run.curve.steps[kept]) / size, run.curve.measured[kept]])


def _draw_target(axes: Axes, race: Race, target: float, axis: str, size: float) -> None:
    axes.axhline(target, color=INK, linewidth=0.7, dashes=(3, 2))
    place: Look = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(goal(race), (0, target), (4, 3), fontsize=small(), **place)
    for index, arm in enumerate(race.arms):
        times = [Time(t.value / size, t.censored) for t in _times(race, arm.label, axis)]
        draw_dots(axes, times, target, ARMS[index % len(ARMS)])


def _draw_gains(axes: Axes, at: Sequence[float], gains: Sequence[Speedup], index: int, faint: float) -> None:
    """Draw a candidate's speed-up over targets; the band ends where censored runs leave the interval open."""
    look: Look = {"color": ARMS[index % len(ARMS)]}
    known = [(x, gain) for x, gain in zip(at, gains, strict=False) if gain.estimate is not None]
    closed = [(x, *ends) for x, gain in known if (ends := closed_ends(gain))]
    if closed:
        x, low, high = zip(*closed, strict=True)
        axes.fill_between(x, low, high, alpha=faint, linewidth=0, **look)
    dashes = DASHES[index % len(DASHES)] or (None, None)
    axes.plot([x for x, _ in known], [gain.factor for _, gain in known], linewidth=1.8, dashes=dashes, **look)


def _draw_bar(axes: Axes, y: int, phases: dict[str, float]) -> None:
    left = 0.0
    for phase, value in phases.items():
        look = {"color": PHASES[phase], "edgecolor": PAPER, "linewidth": 0.6}
        axes.barh(y, value, left=left, height=0.36, **look)
        left += value


def _times(race: Race, label: str, axis: str) -> list[Time]:
    return [run.time(axis) for run in race.of(label) if run.crosses]
