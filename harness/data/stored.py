"""The form of samples on disk, before they are resized and resampled: sizes, rates, and turned videos."""

from __future__ import annotations

from collections.abc import Iterable

# Any: JSON.
from typing import Any, NamedTuple

SAME = 0.005
"""Relative difference from which rates count as mixed, because containers round to ticks."""


class Spread(NamedTuple):
    """The lowest and the highest of some rates."""

    low: float
    high: float

    def text(self, unit: str) -> str:
        """Return the rate, or both ends of mixed rates."""
        if self.high <= (1 + SAME) * self.low:
            return f"{self.low:g} {unit}"
        return f"mixed rates, {self.low:g} to {self.high:g} {unit}"


class Stored(NamedTuple):
    """The form of some samples on disk; None or 0 for what they do not have or do not state."""

    sizes: tuple[tuple[int, int], tuple[int, int]] | None = None
    """(width, height) of the smallest and of the largest picture, by area."""
    frame_rates: Spread | None = None
    """Frames per second of videos."""
    sampling_rates: Spread | None = None
    """Samples per second of recordings, in Hz."""
    turned: int = 0
    """Number of videos that a display matrix turns upright."""
    videos: int = 0

    def parts(self) -> list[str]:
        """Return the phrases of the line that is shown before a run."""
        found = []
        if self.sizes:
            low, high = (f"{width}x{height}" for width, height in self.sizes)
            found.append(f"{low if low == high else f'{low} to {high}'} pixels")
        if self.frame_rates:
            found.append(self.frame_rates.text("frames a second"))
        if self.sampling_rates:
            found.append(self.sampling_rates.text("Hz"))
        if self.turned:
            found.append(f"{self.turned} of {self.videos} videos turned upright")
        return found

    def row(self) -> dict[str, Any]:
        """Return the known facts as JSON."""
        row: dict[str, Any] = {"sizes": self.sizes} if self.sizes else {}
        row |= {"frames_per_second": list(self.frame_rates)} if self.frame_rates else {}
        row |= {"sampling_rates": list(self.sampling_rates)} if self.sampling_rates else {}
        return row | ({"turned_videos": self.turned} if self.videos else {})


def sizes_of(sizes: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the (width, height) of the smallest and of the largest picture, None without pictures."""
    different = {(int(width), int(height)) for width, height in sizes}
    if not different:
        return None
    ordered = sorted(different, key=lambda size: (size[0] * size[1], size))
    return ordered[0], ordered[-1]


def spread(rates: Iterable[float | None]) -> Spread | None:
    """Return the spread of the known rates, None without one."""
    known = {round(rate, 3) for rate in rates if rate}
    return Spread(min(known), max(known)) if known else None


def stored_images(sizes: Iterable[tuple[int, int]]) -> Stored:
    """Return the form of images of some (width, height)."""
    return Stored(sizes_of(sizes))
