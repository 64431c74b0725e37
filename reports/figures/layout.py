"""Widths, margins, limits and legends shared by all figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath

from reports.figures.svg import ARMS, DASHES, INK, MUTED, PAPER, Look, current_look, scaled, small

WIDE, NARROW = 7.6, 3.9
"""The widths of figures for wide and for narrow pages, in inches."""
BROAD = 5.0
"""The width in inches from which a figure has the ticks and the name of a wide one."""
SLACK = 1.12
"""The width of a text in a viewer that lacks the font of an SVG, as a multiple."""
Entry = tuple[Artist, str]
"""A mark and its name in a legend."""


def faintness(arms: int) -> float:
    """Return the opacity of an interval's band, which falls with the number of arms."""
    return 0.14 * min(1.0, 4 / max(arms, 1))


def padded(values: Sequence[float]) -> tuple[float, float]:
    """Return limits of a log scale with some padding at both ends."""
    low, high = min(values), max(values)
    pad = max(1.05, (high / low) ** 0.05)
    return low / pad, high * pad


def fill(
    figure: Figure,
    *,
    left: float,
    top: float = 0.08,
    hspace: float | None = None,
    entries: Sequence[Entry] = (),
) -> None:
    """Set margins in inches, the same for every figure size, and add a legend above if the look has one."""
    top += _add_legend(figure, entries)
    width, height = figure.get_size_inches()
    bottom, right = scaled(0.47) / height, 1 - 0.12 / width
    figure.subplots_adjust(
        left=scaled(left) / width, right=right, top=1 - top / height, bottom=bottom, hspace=hspace
    )


def line_entry(index: int, label: str) -> Entry:
    """Return the legend entry of an arm or an objective: its colour and dashes."""
    dashes = DASHES[index % len(DASHES)] or (None, None)
    return Line2D([], [], color=ARMS[index % len(ARMS)], linewidth=1.8, dashes=dashes), label


def grey_line(label: str, **look: Any) -> Entry:
    """Return the entry of a line that every arm has in its own colour."""
    options: dict[str, Any] = {"color": MUTED, "linewidth": 0.8} | look
    return Line2D([], [], **options), label


def grey_mark(marker: str, label: str, *, filled: bool, size: float = 5) -> Entry:
    """Return the entry of a mark that every arm has in its own colour."""
    face = MUTED if filled else PAPER
    look: dict[str, Any] = {"linestyle": "none", "markersize": size, "markeredgewidth": 0.9}
    return Line2D([], [], marker=marker, markerfacecolor=face, markeredgecolor=MUTED, **look), label


def band_entry(label: str) -> Entry:
    """Return the entry of an interval's band."""
    return Patch(facecolor=MUTED, alpha=0.25, linewidth=0), label


def target_entry(label: str) -> Entry:
    """Return the entry of the dashed line at the target."""
    return Line2D([], [], color=INK, linewidth=0.7, dashes=(3, 2)), label


def ticks(width: float) -> int:
    """Return the maximum number of ticks on an axis of this width."""
    return 9 if width >= BROAD else 5


def width_name(width: float) -> str:
    """Return the ending of a picture's name for this width."""
    return "wide" if width >= BROAD else "narrow"


def text_width(text: str) -> float:
    """Return the width of a label inside axes, or of a legend, in inches."""
    return _text_width(text, current_look()) if text.strip() else 0.0


# A page measures the same labels in the figure of every axis and width, at milliseconds each.
@lru_cache(maxsize=4096)
def _text_width(text: str, look: Look) -> float:
    """Return the width of a text in the fonts of a look, which `style` has applied."""
    return TextPath((0, 0), text, size=small()).get_extents().width / 72


def _add_legend(figure: Figure, entries: Sequence[Entry]) -> float:
    """Add a legend in columns above the axes and make room for it; return its height in inches."""
    if not (entries and current_look().legend):
        return 0.0
    width, height = figure.get_size_inches()
    columns = _columns([label for _, label in entries], width - 0.1)
    room = math.ceil(len(entries) / columns) * scaled(0.148) + 0.04
    figure.set_size_inches(width, height + room)
    marks, labels = zip(*entries, strict=True)
    figure.legend(
        marks,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.05 / width, 1 - 0.03 / (height + room)),
        ncols=columns,
        frameon=False,
        fontsize=small(),
        handlelength=2.4,
        borderaxespad=0,
        borderpad=0,
        labelspacing=0.3,
        columnspacing=1.2,
    )
    return room


def _columns(labels: Sequence[str], room: float) -> int:
    """Return the largest number of legend columns that fit into this width in inches."""
    widths = [SLACK * text_width(label) + scaled(0.48) for label in labels]
    for columns in range(len(labels), 1, -1):
        rows = math.ceil(len(labels) / columns)
        if sum(max(widths[first : first + rows]) for first in range(0, len(widths), rows)) <= room:
            return columns
    return 1
