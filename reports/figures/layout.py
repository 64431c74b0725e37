"""Widths, margins and limits shared by all figures of a page."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

WIDE, NARROW = 7.6, 3.9
"""The widths of figures for wide and for narrow pages, in inches."""


def faintness(arms: int) -> float:
    """Return the opacity of an interval's band, which falls with the number of arms."""
    return 0.14 * min(1.0, 4 / max(arms, 1))


def padded(values: Sequence[float]) -> tuple[float, float]:
    """Return limits of a log scale with some padding at both ends."""
    low, high = min(values), max(values)
    pad = max(1.05, (high / low) ** 0.05)
    return low / pad, high * pad


def fill(figure: Figure, *, left: float, top: float = 0.08, hspace: float | None = None) -> None:
    """Set margins in inches, the same for every figure size."""
    width, height = figure.get_size_inches()
    bottom, right = 0.47 / height, 1 - 0.12 / width
    figure.subplots_adjust(left=left / width, right=right, top=1 - top / height, bottom=bottom, hspace=hspace)


def ticks(width: float) -> int:
    """Return the maximum number of ticks on an axis of this width."""
    return 9 if width == WIDE else 5


def width_name(width: float) -> str:
    """Return the ending of a picture's name for this width."""
    return "wide" if width == WIDE else "narrow"
