"""Performance profiles as pictures: how often an objective is within a factor of the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from reports.analysis.performance_profile import ENOUGH, MOST, TIE, Profile
from reports.analysis.report import RaceReport
from reports.figures.layout import fill, ticks, width_name
from reports.figures.race_figures import AXIS_NAMES
from reports.figures.strips import set_log_ticks
from reports.figures.svg import ARMS, DASHES, MUTED, Picture, style
from reports.pages.section import drawings, render_template

LEAST = 2
"""Problems below which there is no profile to speak of."""


def profile_section(report: RaceReport) -> Markup | None:
    """Return the section; None for one objective, or for fewer than two problems that all of them have
    run."""
    found = shown_profiles(report)
    if not found:
        return None
    return render_template(
        "performance",
        report.race,
        pictures={axis: drawings(partial(draw_profile, one)) for axis, one in found.items()},
        tables={axis: _rows(one) for axis, one in found.items()},
        problems={
            axis: (one.ratios.shape[1], len(set(one.strata)), one.left_out) for axis, one in found.items()
        },
        names=[(name, _swatch(index)) for index, name in enumerate(next(iter(found.values())).objectives)],
        most=MOST,
        enough=ENOUGH,
    )


def shown_profiles(report: RaceReport) -> dict[str, Profile]:
    """Return the profiles over enough problems, by axis."""
    return {axis: profile for axis, profile in report.profiles.items() if profile.ratios.shape[1] >= LEAST}


def draw_profile(found: Profile, width: float) -> Picture:
    """Draw shares as steps over tau on a log scale from 1 to 4."""
    with style():
        figure = Figure(figsize=(width, 0.34 * width + 0.7))
        axes = figure.subplots()
        axes.axhline(1, color=MUTED, linewidth=0.6)
        for index, row in enumerate(found.ratios):
            look = {"color": ARMS[index % len(ARMS)], "dashes": DASHES[index % len(DASHES)] or (None, None)}
            axes.plot(*steps(row), linewidth=1.6, **look)
        axes.set(xscale="log", xlim=(1, MOST), ylim=(-0.02, 1.04), yticks=[0, 0.25, 0.5, 0.75, 1])
        axes.set_yticklabels(["0", "25 %", "50 %", "75 %", "100 %"])
        set_log_ticks(axes.xaxis, (1, MOST), ticks(width), "{:g}×")
        axes.set(
            xlabel=f"within this factor of the fastest, {AXIS_NAMES[found.axis]}", ylabel="share of problems"
        )
        axes.grid(True, axis="y")
        fill(figure, left=0.74)
        said = f"share of problems within a factor of the fastest in {AXIS_NAMES[found.axis]}"
        return Picture(figure, f"profile-{found.axis}-{width_name(width)}", said)


def steps(ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of a profile from 1 to `MOST`: it begins at the share of ties with the fastest and
    goes up at each ratio."""
    best = (ratios <= 1 + TIE).sum()
    later = np.sort(ratios[(ratios > 1 + TIE) & (ratios <= MOST)])
    share = np.arange(best, best + len(later) + 1) / len(ratios)
    return np.concatenate([[1.0], np.repeat(later, 2), [MOST]]), np.repeat(share, 2)


def _rows(found: Profile) -> list[dict[str, Any]]:
    """Return the best area first."""
    areas, ends, first = found.area(), found.interval(), found.share(1)
    never = np.isinf(found.ratios).sum(axis=1)
    rows = [
        {
            "objective": name,
            "area": f"{areas[i]:.3f}",
            "interval": "" if ends is None else f"[{ends[i][0]:.3f}, {ends[i][1]:.3f}]",
            "first": f"{first[i]:.0%}",
            "never": int(never[i]),
        }
        for i, name in enumerate(found.objectives)
    ]
    return [rows[i] for i in _order(areas)]


def _order(areas: np.ndarray) -> Sequence[int]:
    return np.argsort(-areas, kind="stable").tolist()


def _swatch(index: int) -> dict[str, str]:
    dashes = DASHES[index % len(DASHES)]
    return {"colour": f"arm{index % len(ARMS)}", "dashes": " ".join(str(2 * d) for d in dashes)}
