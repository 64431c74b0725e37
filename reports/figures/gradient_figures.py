"""The figure of the separate gradients: share, cosine and norms by step, for every seed and the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reports.figures.chart_data import thin
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
from reports.figures.strips import set_log_ticks
from reports.figures.svg import ARMS, DASHES, INK, Picture, style
from reports.race.gradients import DEAD, Gradients, Series
from reports.race.race import Race
from reports.stats.t_interval import t_interval

PANEL = 1.35
"""The height of a panel, in inches."""
POINTS = 400
"""Points of a curve."""


@dataclass(frozen=True)
class Panel:
    """One quantity: its name on the axis, the factor of its unit, and its scale."""

    name: str
    label: str
    factor: float = 1.0
    log: bool = True


PANELS = (
    Panel("share", "alignment's share, %", 100.0),
    Panel("cosine", "cosine of gradients", log=False),
    Panel("flow", "norm, flow loss"),
    Panel("auxiliary", "norm, alignment"),
    Panel("features", "norm of features", log=False),
)


def draw_gradients(race: Race, found: Gradients, width: float) -> Picture:
    """Draw a panel for each quantity that any run has, over the step."""
    panels = [panel for panel in PANELS if found.series[panel.name]]
    with style():
        figure = Figure(figsize=(width, PANEL * len(panels) + 0.6))
        every = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(every, panels, strict=True):
            _draw(axes, race, panel, found)
        every[-1].set_xlabel("steps")
        every[-1].xaxis.set_major_locator(MaxNLocator(ticks(width), integer=True))
        every[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        fill(figure, left=0.72, hspace=0.14, entries=_entries(race, found))
        figure.align_ylabels(every)
        description = "share of the gradient from alignment, cosine with the flow loss's, and norms, by step"
        return Picture(figure, f"gradients-{width_name(width)}", description)


def mean_over_seeds(seeds: Mapping[int, Series], *, log: bool) -> tuple[np.ndarray, ...]:
    """Return (steps, mean, low, high) over the steps that all seeds have, with Student's 95 % interval.

    On a log scale the mean is geometric. With one seed the interval is the value itself.
    """
    shared = set.intersection(*(set(steps.tolist()) for steps, _ in seeds.values()))
    steps = np.array(sorted(shared), dtype=int)
    rows = [values[np.isin(own, steps)] for own, values in seeds.values()]
    found = np.log(rows) if log else np.array(rows)
    mean, n = found.mean(axis=0), len(rows)
    ends = (mean, mean) if n == 1 else t_interval(mean, found.std(axis=0, ddof=1), n - 1, n=n)
    return (steps, *(np.exp(x) if log else x for x in (mean, *ends)))


def _draw(axes: Axes, race: Race, panel: Panel, found: Gradients) -> None:
    shown: list[float] = []
    for index, arm in enumerate(race.arms):
        if seeds := _seeds(found, panel, arm.label):
            shown += _draw_arm(axes, index, seeds, panel, faintness(len(race.arms)))
    axes.set_ylabel(panel.label)
    axes.grid(True, axis="y")
    if panel.name == "cosine":
        axes.axhline(0, color=INK, linewidth=0.7)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -1.05), min(high, 1.05))
    if panel.name == "share":
        axes.axhline(100 * DEAD, color=INK, linewidth=0.7, dashes=(3, 2))
        shown.append(100 * DEAD)
    if panel.log and shown:
        limits = padded(shown)
        axes.set(yscale="log", ylim=limits)
        set_log_ticks(axes.yaxis, limits, 5)


def _seeds(found: Gradients, panel: Panel, label: str) -> dict[int, Series]:
    """Return the series of an arm in a panel, by seed, without seeds that have no point in it."""
    series = found.series[panel.name].get(label, {})
    points = {seed: _drawable(own, panel) for seed, own in series.items()}
    return {seed: own for seed, own in points.items() if len(own[0])}


def _drawable(series: Series, panel: Panel) -> Series:
    steps, values = series[0], series[1] * panel.factor
    kept = values > 0 if panel.log else np.isfinite(values)
    return steps[kept], values[kept]


def _draw_arm(
    axes: Axes, index: int, seeds: Mapping[int, Series], panel: Panel, faint: float
) -> Sequence[float]:
    """Draw an arm, and return the values that were drawn."""
    look: dict[str, Any] = {"color": ARMS[index % len(ARMS)]}
    for steps, values in seeds.values():
        kept = thin(steps, values, POINTS)
        axes.plot(steps[kept], values[kept], linewidth=0.6, alpha=0.45, **look)
    steps, mean, low, high = mean_over_seeds(seeds, log=panel.log)
    kept = thin(steps, mean, POINTS) if len(steps) else np.array([], dtype=int)
    if len(seeds) > 1:
        axes.fill_between(steps[kept], low[kept], high[kept], alpha=faint, linewidth=0, **look)
    dashes = DASHES[index % len(DASHES)] or (None, None)
    axes.plot(steps[kept], mean[kept], linewidth=1.8, dashes=dashes, **look)
    return [float(value) for _, values in seeds.values() for value in values]


def _entries(race: Race, found: Gradients) -> list[Entry]:
    drawn = {label for panel in PANELS for label in found.series[panel.name] if _seeds(found, panel, label)}
    entries = [line_entry(index, arm.label) for index, arm in enumerate(race.arms) if arm.label in drawn]
    entries.append(grey_line("one seed", linewidth=0.6))
    if any(len(seeds) > 1 for seeds in found.series["flow"].values()):
        entries.append(band_entry("mean over seeds, 95 % interval"))
    return [*entries, target_entry("1 %")] if found.series["share"] else entries
