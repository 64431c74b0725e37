"""Widths, margins and limits that all pictures of a page share."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

WIDE, NARROW = 7.6, 3.9
"""Inches."""


def faintness(arms: int) -> float:
    """Opacity of the band of an interval: the fainter the more of them lie on each other."""
    return 0.14 * min(1.0, 4 / max(arms, 1))


def padded(values: Sequence[float]) -> tuple[float, float]:
    """Limits of a log scale with some room at both ends."""
    low, high = min(values), max(values)
    pad = max(1.05, (high / low) ** 0.05)
    return low / pad, high * pad


def fill(figure: Figure, *, left: float, top: float = 0.08, hspace: float | None = None) -> None:
    """Margins in inches, the same whatever the size of the figure."""
    width, height = figure.get_size_inches()
    bottom, right = 0.47 / height, 1 - 0.12 / width
    figure.subplots_adjust(left=left / width, right=right, top=1 - top / height, bottom=bottom, hspace=hspace)


def ticks(width: float) -> int:
    """At most so many ticks."""
    return 9 if width == WIDE else 5


def width_name(width: float) -> str:
    """As it ends the name of a picture."""
    return "wide" if width == WIDE else "narrow"
