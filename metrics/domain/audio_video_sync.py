"""Audio-video synchrony: offsets between visible impacts and audible clicks.

Times are in frames of video: frame k shows the moment k, and sound frame j of `per_frame` in each is centred
on (j + 1/2) / per_frame - 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from metrics.domain.video_consistency import centres
from metrics.intervals import of_ratio
from metrics.value import MetricError, Value

PROMINENCE = 1.0
"""Pixels by which a visible impact must stand out of the path, on both sides."""
RISE = 24.0
"""Bytes by which an audible click must raise the sound, averaged over the bands that rise and those that do
not.
"""
EDGE = 1.0
"""Frames from either end of a clip within which an event without partner is not counted: its partner may lie
outside.
"""


class Sync(NamedTuple):
    share: Value
    """2 pairs within one frame / (impacts + clicks): 1 where each has its partner.

    The interval is over videos.
    """
    offsets: np.ndarray
    """Click less impact, in frames, of all pairs, including those more than one frame apart."""

    @property
    def median(self) -> float:
        """The median distance in frames; nan without pairs."""
        return float(np.median(np.abs(self.offsets))) if len(self.offsets) else float("nan")


def impacts(videos: np.ndarray) -> list[np.ndarray]:
    """Return the times at which something turns from falling to rising, for each grey video (N, T, H, W) on
    black.

    A local maximum of the centre of mass's row that stands out by PROMINENCE, between frames by the tip of
    the triangle that the frame before and the frame after make with it. The first and the last frame cannot
    hold one.
    """
    from scipy.signal import find_peaks

    rows = centres(videos)[..., 0]
    return [_tips(row, find_peaks(row, prominence=PROMINENCE)[0]) for row in rows]


def _tips(row: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    before, here, after = row[peaks - 1], row[peaks], row[peaks + 1]
    return peaks + (after - before) / (2 * np.maximum(here - before, here - after))


def clicks(sounds: np.ndarray, *, per_frame: int) -> list[np.ndarray]:
    """Return the times at which something begins to sound, for each log-mel picture uint8 (N, bands, frames).

    A local maximum over at least one video frame of the bands' mean rise from one sound frame to the next,
    RISE or more.
    """
    from scipy.signal import find_peaks

    x = np.asarray(sounds)
    if x.ndim != 3 or x.dtype != np.uint8 or 0 in x.shape or per_frame < 1:
        raise MetricError(
            f"expected log-mels uint8 (N, bands, frames) and per_frame above 0, given {x.dtype} of shape {x.shape}"
        )
    rise = np.maximum(np.diff(x.astype(np.float64), axis=2, prepend=0), 0).mean(1)
    # So that the first and the last frame can be a maximum.
    rise = np.pad(rise, [(0, 0), (1, 1)])
    found = [find_peaks(row, height=RISE, distance=per_frame)[0] - 1 for row in rise]
    return [(number + 0.5) / per_frame - 0.5 for number in found]


def synchrony(
    impacts: Sequence[np.ndarray], clicks: Sequence[np.ndarray], *, frames: int, within: float = 1.0
) -> Sync:
    """Return how well the clicks fit the impacts (times in frames, one array a video of `frames` frames).

    Each impact has at most one click: the largest number of pairs within `within` frames, then the smallest
    sum of distances. Too many clicks cost as much as too few. Raises `MetricError` if there is neither an
    impact nor a click.
    """
    if len(impacts) != len(clicks) or not len(impacts):
        raise MetricError(f"synchrony pairs videos with their sound; given {len(impacts)} and {len(clicks)}")
    paired = [
        _pairs(np.asarray(a), np.asarray(b), frames, within) for a, b in zip(impacts, clicks, strict=True)
    ]
    hits, counted = (np.array([getattr(p, name) for p in paired], float) for name in ("hits", "counted"))
    if not counted.sum():
        raise MetricError("synchrony is not defined: there is neither a visible impact nor an audible click")
    return Sync(of_ratio(2 * hits, counted), np.concatenate([p.offsets for p in paired]))


class _Pairs(NamedTuple):
    hits: int
    counted: int
    offsets: np.ndarray


def _pairs(impacts: np.ndarray, clicks: np.ndarray, frames: int, within: float) -> _Pairs:
    from scipy.optimize import linear_sum_assignment

    apart = clicks - impacts[:, None]
    far = np.abs(apart) > within
    one, other = linear_sum_assignment(np.abs(apart) + far * 1e6)
    near = ~far[one, other]
    hits = int(near.sum())
    alone = np.concatenate([np.delete(impacts, one[near]), np.delete(clicks, other[near])])
    inside = (alone >= EDGE) & (alone <= frames - 1 - EDGE)
    return _Pairs(hits, 2 * hits + int(inside.sum()), apart[one, other])
