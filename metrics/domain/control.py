"""Representations for control: linear decoding of states and actions from frozen hidden features.

This is a proxy for the success of a robot: a small policy can act on features from which a ridge regression
decodes position and motion.
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
"""Candidate ridge penalties, for standardised features and a squared error averaged over rows.

One is selected on training videos.
"""
EVERY = 4
"""Every fourth video is held out; every fourth of the others validates the penalty."""


class Decoded(NamedTuple):
    """The decoding quality of one layer."""

    r2: Value
    """R2 on held-out videos, averaged over targets, with a jackknife interval over videos.

    A constant prediction scores 0, and lower values are possible.
    """
    penalty: float
    """The ridge penalty selected."""


def decoded(
    features: Mapping[Layer, np.ndarray], targets: np.ndarray, videos: np.ndarray
) -> dict[Layer, Decoded]:
    """Return the held-out R2 of a ridge regression from each layer's features (N, d) to targets (N, k).

    `videos` (N,) is the video number of each row; all rows of a video are on one side of the split. R2 is
    1 - sum of squared errors / sum of squares about the held-out mean, averaged over the k targets
    (scikit-learn's `r2_score`). Raises `MetricError` for different numbers of rows, fewer than 8 videos, or a
    target that is constant on the held-out side.
    """
    y, videos = as_features(targets, "target").astype(np.float64), np.asarray(videos)
    if videos.shape != (len(y),):
        raise MetricError(
            f"control needs one video number per row of targets, but got {len(y)} rows and video numbers of "
            f"shape {videos.shape}"
        )
    numbers = np.unique(videos)
    if len(numbers) < 2 * EVERY:
        raise MetricError(
            f"control needs at least {2 * EVERY} videos to hold some out, but got {len(numbers)}"
        )
    held_out = np.isin(videos, numbers[::EVERY])
    validation = np.isin(videos, np.delete(numbers, np.s_[::EVERY])[::EVERY])
    if not (np.ptp(y[held_out], axis=0) > 0).all():
        raise MetricError("control: a target is constant on the held-out side, so R2 is not defined")
    return {layer: _decode(x, y, videos, held_out, validation, str(layer)) for layer, x in features.items()}


def _decode(
    given: np.ndarray,
    y: np.ndarray,
    videos: np.ndarray,
    held_out: np.ndarray,
    validation: np.ndarray,
    layer: str,
) -> Decoded:
    x = as_features(given, f"layer {layer}").astype(np.float64)
    if len(x) != len(y):
        raise MetricError(f"layer {layer} has {len(x)} rows of features for {len(y)} rows of targets")
    training = ~held_out & ~validation
    predicted = ridge(x[training], y[training], PENALTIES, x[validation])
    errors = (predicted - y[validation]) ** 2 / y[~held_out].var(0).clip(1e-12)
    penalty = float(PENALTIES[int(np.argmin(errors.mean((1, 2))))])
    (predicted,) = ridge(x[~held_out], y[~held_out], np.array([penalty]), x[held_out])
    return Decoded(_r2(predicted, y[held_out], videos[held_out]), penalty)


def ridge(x: np.ndarray, y: np.ndarray, penalties: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the predictions (penalties, M, k) for `new` (M, d) of ridge regressions on x (N, d), y (N, k).

    They minimise |y - b - z w|^2 / N + penalty |w|^2, with z standardised by the statistics of x. Constant
    columns are dropped.
    """
    centre, spread = x.mean(0), x.std(0)
    varies = spread > 1e-9 * max(1.0, float(np.abs(x).max()))
    z, fresh = (((part - centre) / np.where(varies, spread, 1))[:, varies] for part in (x, new))
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    onto = vectors.T @ z.T @ (y - y.mean(0)) / len(z)
    weights = onto / (values.clip(0)[:, None] + penalties[:, None, None])
    return y.mean(0) + (fresh @ vectors) @ weights


def _r2(predicted: np.ndarray, y: np.ndarray, videos: np.ndarray) -> Value:
    """Return R2 averaged over targets, from sums per video that the jackknife subtracts from the total."""
    index = np.unique(videos, return_inverse=True)[1]
    per_video = [
        np.stack([np.bincount(index, column) for column in part.T], 1)
        for part in ((y - predicted) ** 2, y, y**2)
    ]
    rows = np.bincount(index)[:, None]

    def r2(errors: np.ndarray, sums: np.ndarray, squares: np.ndarray, count: np.ndarray) -> np.ndarray:
        return (1 - errors / (squares - sums**2 / count)).mean(-1)

    parts = (*per_video, rows)
    estimate, left_out = r2(*(p.sum(0) for p in parts)), r2(*(p.sum(0) - p for p in parts))
    return of_jackknife(float(estimate), left_out)
