"""Audio-video synchrony: offsets between visible impacts and audible clicks.

Times are in video frames: frame k shows time k. With `per_frame` sound frames per video frame, sound frame j
is centred on (j + 1/2) / per_frame - 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metrics.domain.video_consistency import centres
from metrics.intervals import of_ratio
from metrics.value import MetricError, Value

PROMINENCE = 1.0
"""Prominence in pixels that a visible impact needs on both sides of its peak."""
RISE = 24.0
"""Mean rise in bytes over all bands that an audible click needs; bands that fall count as 0."""
EDGE = 1.0
"""Margin in frames at either end of a clip. An unpaired event within it is not counted, because its partner
may be outside the clip.
"""


class Sync(NamedTuple):
    """Synchrony of impacts and clicks."""

    share: Value
    """2 * pairs within one frame / (impacts + clicks), 1 if every event has its partner; interval over
    videos."""
    offsets: np.ndarray
    """Time of the click minus that of the impact in frames, for all pairs, also those over one frame."""

    @property
    def median(self) -> float:
        """Median absolute offset in frames; nan without pairs."""
        return float(np.median(np.abs(self.offsets))) if len(self.offsets) else float("nan")


def impacts(videos: np.ndarray) -> list[np.ndarray]:
    """Return the times at which an object turns from falling to rising, for each grey video (N, T, H, W).

    The background is black. An impact is a local maximum of the centre of mass's row with a prominence of
    PROMINENCE or more. Its time is refined between frames: it is the tip of a triangle through the frames
    before and after. The first and last frames cannot hold an impact.
    """
    from scipy.signal import find_peaks

    rows = centres(videos)[..., 0]
    return [_tips(row, find_peaks(row, prominence=PROMINENCE)[0]) for row in rows]


def _tips(row: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    before, here, after = row[peaks - 1], row[peaks], row[peaks + 1]
    return peaks + (after - before) / (2 * np.maximum(here - before, here - after))


def clicks(sounds: np.ndarray, *, per_frame: int) -> list[np.ndarray]:
    """Return the times of sound onsets, for each log-mel image uint8 (N, bands, frames).

    An onset is a local maximum, over at least one video frame, of the mean rise of the bands from one sound
    frame to the next. The rise must be RISE or more.
    """
    from scipy.signal import find_peaks

    x = np.asarray(sounds)
    if x.ndim != 3 or x.dtype != np.uint8 or 0 in x.shape or per_frame < 1:
        raise MetricError(
            "expected log-mel images uint8 (N, bands, frames) and per_frame of 1 or more, but got "
            f"{x.dtype} of shape {x.shape} and per_frame {per_frame}"
        )
    rise = np.maximum(np.diff(x.astype(np.float64), axis=2, prepend=0), 0).mean(1)
    # Padding lets the first and the last frame be a maximum.
    rise = np.pad(rise, [(0, 0), (1, 1)])
    peaks = [find_peaks(row, height=RISE, distance=per_frame)[0] - 1 for row in rise]
    return [(number + 0.5) / per_frame - 0.5 for number in peaks]


def synchrony(
    impacts: Sequence[np.ndarray], clicks: Sequence[np.ndarray], *, frames: int, within: float = 1.0
) -> Sync:
    """Return the synchrony of impacts and clicks, given one array of times per video of `frames` frames.

    Each impact is paired with at most one click. The pairing maximises the number of pairs within `within`
    frames, then minimises the sum of absolute offsets. Surplus clicks cost as much as missing ones. Raises
    `MetricError` if there is neither an impact nor a click.
    """
    if len(impacts) != len(clicks) or not len(impacts):
        raise MetricError(
            f"synchrony needs one list of impacts and one of clicks for each video, but got {len(impacts)} "
            f"and {len(clicks)}"
        )
    paired = [
        _pairs(np.asarray(a), np.asarray(b), frames, within) for a, b in zip(impacts, clicks, strict=True)
    ]
    hits, counted = (np.array([getattr(p, name) for p in paired], float) for name in ("hits", "counted"))
    if not counted.sum():
        raise MetricError("synchrony is not defined: there is neither a visible impact nor an audible click")
    return Sync(of_ratio(2 * hits, counted), np.concatenate([p.offsets for p in paired]))


class _Pairs(NamedTuple):
    """The pairs of one video: number within the tolerance, events counted, and offsets."""

    hits: int
    counted: int
    offsets: np.ndarray


def _pairs(impacts: np.ndarray, clicks: np.ndarray, frames: int, within: float) -> _Pairs:
    from scipy.optimize import linear_sum_assignment

    offsets = clicks - impacts[:, None]
    far = np.abs(offsets) > within
    row, column = linear_sum_assignment(np.abs(offsets) + far * 1e6)
    near = ~far[row, column]
    hits = int(near.sum())
    unpaired = np.concatenate([np.delete(impacts, row[near]), np.delete(clicks, column[near])])
    inside = (unpaired >= EDGE) & (unpaired <= frames - 1 - EDGE)
    return _Pairs(hits, 2 * hits + int(inside.sum()), offsets[row, column])
