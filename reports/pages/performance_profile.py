"""Performance profiles as figures: how often an objective is within a factor of the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from reports.analysis.performance_profile import ENOUGH, MOST, TIE, Profile
from reports.analysis.report import RaceReport
from reports.figures.layout import fill, line_entry, ticks, width_name
from reports.figures.race_figures import AXIS_NAMES
from reports.figures.strips import set_log_ticks
from reports.figures.svg import ARMS, DASHES, MUTED, Picture, style
from reports.pages.section import drawings, render_template

LEAST = 2
"""The smallest number of problems for which a profile is shown."""


def profile_section(report: RaceReport) -> Markup | None:
    """Return the section; None for one objective, or with fewer than two problems that all objectives ran."""
    profiles = shown_profiles(report)
    if not profiles:
        return None
    objectives = next(iter(profiles.values())).objectives
    return render_template(
        "performance",
        report.race,
        pictures={axis: drawings(partial(draw_profile, profile)) for axis, profile in profiles.items()},
        tables={axis: _rows(profile) for axis, profile in profiles.items()},
        problems={
            axis: (profile.ratios.shape[1], len(set(profile.strata)), profile.left_out)
            for axis, profile in profiles.items()
        },
        names=[(name, _swatch(index)) for index, name in enumerate(objectives)],
        most=MOST,
        enough=ENOUGH,
    )


def shown_profiles(report: RaceReport) -> dict[str, Profile]:
    """Return the profiles over enough problems, by axis."""
    return {axis: profile for axis, profile in report.profiles.items() if profile.ratios.shape[1] >= LEAST}


def draw_profile(profile: Profile, width: float) -> Picture:
    """Draw the fractions of problems as step functions of tau, on a log scale from 1 to `MOST`."""
    with style():
        figure = Figure(figsize=(width, 0.34 * width + 0.7))
        axes = figure.subplots()
        axes.axhline(1, color=MUTED, linewidth=0.6)
        for index, row in enumerate(profile.ratios):
            look = {"color": ARMS[index % len(ARMS)], "dashes": DASHES[index % len(DASHES)] or (None, None)}
            axes.plot(*steps(row), linewidth=1.6, **look)
        axes.set(xscale="log", xlim=(1, MOST), ylim=(-0.02, 1.04), yticks=[0, 0.25, 0.5, 0.75, 1])
        axes.set_yticklabels(["0", "25 %", "50 %", "75 %", "100 %"])
        set_log_ticks(axes.xaxis, (1, MOST), ticks(width), "{:g}×")
        axes.set(
            xlabel=f"within this factor of the fastest, {AXIS_NAMES[profile.axis]}",
            ylabel="share of problems",
        )
        axes.grid(True, axis="y")
        entries = [line_entry(index, name) for index, name in enumerate(profile.objectives)]
        fill(figure, left=0.74, entries=entries)
        description = f"share of problems within a factor of the fastest in {AXIS_NAMES[profile.axis]}"
        return Picture(figure, f"profile-{profile.axis}-{width_name(width)}", description)


def steps(ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of a profile from 1 to `MOST`.

    It starts at the fraction of problems in which the objective is fastest and rises at each larger ratio.
    """
    best = (ratios <= 1 + TIE).sum()
    later = np.sort(ratios[(ratios > 1 + TIE) & (ratios <= MOST)])
    share = np.arange(best, best + len(later) + 1) / len(ratios)
    return np.concatenate([[1.0], np.repeat(later, 2), [MOST]]), np.repeat(share, 2)


def _rows(profile: Profile) -> list[dict[str, Any]]:
    """Return one row of texts per objective, the largest area first."""
    areas, ends, first = profile.area(), profile.interval(), profile.share(1)
    never = np.isinf(profile.ratios).sum(axis=1)
    rows = [
        {
            "objective": name,
            "area": f"{areas[i]:.3f}",
            "interval": "" if ends is None else f"[{ends[i][0]:.3f}, {ends[i][1]:.3f}]",
            "first": f"{100 * first[i]:.0f} %",
            "never": int(never[i]),
        }
        for i, name in enumerate(profile.objectives)
    ]
    return [rows[i] for i in _order(areas)]


def _order(areas: np.ndarray) -> Sequence[int]:
    return np.argsort(-areas, kind="stable").tolist()


def _swatch(index: int) -> dict[str, str]:
    dashes = DASHES[index % len(DASHES)]
    return {"colour": f"arm{index % len(ARMS)}", "dashes": " ".join(str(2 * d) for d in dashes)}
