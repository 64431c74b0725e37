"""Representation for control: state and action, read linearly from frozen hidden features.

A proxy for a robot's success: features from which position and motion can be read by a ridge regression
are features from which a small policy can act.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from metrics.arrays import as_features
from metrics.intervals import of_jackknife
from metrics.value import MetricError, Value

Layer = TypeVar("Layer", bound=Hashable)
PENALTIES = 10.0 ** np.arange(-3, 7)
"""Candidates, chosen on the training side, for standardised features and sums divided by the number of
rows."""
EVERY = 4
"""Every fourth video is held out; of the others, every fourth chooses the penalty."""


class Decoded(NamedTuple):
    r2: Value
    """On held-out videos, the mean over targets, with the jackknife's interval over videos.

    A constant prediction scores 0, and lower values are possible.
    """
    penalty: float


def decoded(
    features: Mapping[Layer, np.ndarray], targets: np.ndarray, videos: np.ndarray
) -> dict[Layer, Decoded]:
    """Return the R2 of a ridge regression from each layer's features (N, d) to targets (N, k), on held-out
    videos.

    `videos` (N,) is the video of each row; all rows of a video are on one side of the split. R2 is 1 - sum of
    squared errors / sum of squares about the held-out mean, averaged over the k targets, as scikit-learn's
    `r2_score` has it. Raises `MetricError` for rows that do not fit, fewer than 8 videos, or a target that
    does not vary on the held-out side.
    """
    y, videos = as_features(targets, "target").astype(np.float64), np.asarray(videos)
    if videos.shape != (len(y),):
        raise MetricError(f"control has {len(y)} rows of targets and video numbers of shape {videos.shape}")
    names = np.unique(videos)
    if len(names) < 2 * EVERY:
        raise MetricError(f"control needs at least {2 * EVERY} videos to hold some out; given {len(names)}")
    held_out = np.isin(videos, names[::EVERY])
    chooses = np.isin(videos, np.delete(names, np.s_[::EVERY])[::EVERY])
    if not (np.ptp(y[held_out], axis=0) > 0).all():
        raise MetricError("control: a target is constant on the held-out side, so there is nothing to decode")
    return {layer: _decode(x, y, videos, held_out, chooses, str(layer)) for layer, x in features.items()}


def _decode(
    given: np.ndarray,
    y: np.ndarray,
    videos: np.ndarray,
    held_out: np.ndarray,
    chooses: np.ndarray,
    layer: str,
) -> Decoded:
    x = as_features(given, f"layer {layer}").astype(np.float64)
    if len(x) != len(y):
        raise MetricError(f"layer {layer} has {len(x)} rows of features for {len(y)} of targets")
    fits = ~held_out & ~chooses
    tried = ridge(x[fits], y[fits], PENALTIES, x[chooses])
    best = int(np.argmin(((tried - y[chooses]) ** 2 / y[~held_out].var(0).clip(1e-12)).mean((1, 2))))
    penalty = float(PENALTIES[best])
    (read,) = ridge(x[~held_out], y[~held_out], np.array([penalty]), x[held_out])
    return Decoded(_r2(read, y[held_out], videos[held_out]), penalty)


def ridge(x: np.ndarray, y: np.ndarray, penalties: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return predictions (penalties, M, k) for `new` (M, d) of a ridge regression on x (N, d), y (N, k).

    It minimises |y - b - z w|^2 / N + penalty |w|^2, with z standardised by x, without columns that do not
    vary.
    """
    centre, spread = x.mean(0), x.std(0)
    varies = spread > 1e-9 * max(1.0, float(np.abs(x).max()))
    z, fresh = (((part - centre) / np.where(varies, spread, 1))[:, varies] for part in (x, new))
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    onto = vectors.T @ z.T @ (y - y.mean(0)) / len(z)
    weights = onto / (values.clip(0)[:, None] + penalties[:, None, None])
    return y.mean(0) + (fresh @ vectors) @ weights


def _r2(read: np.ndarray, y: np.ndarray, videos: np.ndarray) -> Value:
    which = np.unique(videos, return_inverse=True)[1]
    per_video = [
        np.stack([np.bincount(which, column) for column in part.T], 1) for part in ((y - read) ** 2, y, y**2)
    ]
    rows = np.bincount(which)[:, None]

    def of(errors: np.ndarray, sums: np.ndarray, squares: np.ndarray, count: np.ndarray) -> np.ndarray:
        return (1 - errors / (squares - sums**2 / count)).mean(-1)

    parts = (*per_video, rows)
    whole, without = of(*(p.sum(0) for p in parts)), of(*(p.sum(0) - p for p in parts))
    return of_jackknife(float(whole), without)
