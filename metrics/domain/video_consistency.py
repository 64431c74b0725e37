"""Temporal consistency of generated videos: object identity, and motion against the generator's physics.

A frozen video has perfect identity, so `agreement` and `drift` must be read together with `dynamics_error`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metrics.intervals import around, of_jackknife
from metrics.value import MetricError, Value

PHASES, SPEEDS, ROUNDS = 64, 41, 12
"""Size of the initial grid of `dynamics_error` over phases and speeds, and the number of step halvings."""
CHUNK = 32
"""Number of axes fitted at once."""


class Drift(NamedTuple):
    """Squared distances of features within a video, relative to those between videos."""

    by_lag: np.ndarray
    """Mean (T - 1,) over pairs of frames at each lag from 1 to T - 1."""
    relative: Value
    """Mean over all pairs of frames: 0 for frozen videos, 1 if frames are shuffled among videos."""


def agreement(predicted: np.ndarray) -> Value:
    """Return the share of pairs of frames of one video that a classifier assigns to the same class.

    `predicted` (N, T) is the class of each frame. The share is averaged over videos, and the interval is over
    videos. It is 1 for a perfect classifier on real videos, and about 1 / classes if frames are shuffled
    among videos. Raises `MetricError` for T < 2.
    """
    predicted = _checked(predicted, 2, "predicted classes (N, T)")
    frames = predicted.shape[1]
    same = (predicted[:, :, None] == predicted[:, None]).sum((1, 2)) - frames
    return _mean(same / (frames * (frames - 1)))


def drift(features: np.ndarray) -> Drift:
    """Return the variation of features within a video, relative to that between videos.

    `features` (N, T, d) are those of the frames, with N >= 3 and T >= 2. The interval of `relative` is from
    the jackknife over videos. Raises `MetricError` if all videos have the same features.
    """
    x = _checked(features, 3, "features (N, T, d)").astype(np.float64)
    n, frames, _ = x.shape
    if n < 3:
        raise MetricError(f"drift compares videos with one another and needs 3 or more, but got {n}")
    x = x - x.mean((0, 1))
    squares, sums = (x**2).sum((1, 2)), x.sum(1)
    within = 2 * (frames * squares - (sums**2).sum(1))
    across = frames * (squares[:, None] + squares) - 2 * sums @ sums.T
    np.fill_diagonal(across, 0)
    if not across.sum() > 1e-12 * np.abs(np.asarray(features)).max() ** 2:
        raise MetricError("drift is not defined: all videos have the same features")
    between = across.sum() / (n * (n - 1) * frames**2)
    lags = [((x[:, lag:] - x[:, :-lag]) ** 2).sum(-1).mean() / between for lag in range(1, frames)]
    pairs = frames / (frames - 1)
    estimate = (n - 1) * pairs * within.sum() / across.sum()
    left_out = (n - 2) * pairs * (within.sum() - within) / (across.sum() - 2 * across.sum(1))
    return Drift(np.array(lags), of_jackknife(float(estimate), left_out))


def centres(videos: np.ndarray) -> np.ndarray:
    """Return the centres of mass (N, T, 2), row and column in pixels, of grey videos (N, T, H, W).

    The background is black; the centre of a black frame is its middle.
    """
    x = _checked(videos, 4, "grey videos (N, T, H, W)").astype(np.float64)
    if x.min() < 0:
        raise MetricError(f"centres of mass need brightness of at least 0; the lowest value is {x.min():g}")
    mass, sides = x.sum((2, 3)), x.shape[2:]
    moments = (
        np.einsum("nthw,h->nt", x, np.arange(sides[0])),
        np.einsum("nthw,w->nt", x, np.arange(sides[1])),
    )
    axes = [
        np.where(mass > 0, moment / np.where(mass > 0, mass, 1), (side - 1) / 2)
        for moment, side in zip(moments, sides, strict=True)
    ]
    return np.stack(axes, -1)


def dynamics_error(paths: np.ndarray, *, room: float, slow: float, fast: float) -> Value:
    """Return the distance in pixels of paths (N, T, 2) from the nearest possible path of a moving digit.

    On each axis a possible path is w + reflect(a + v t), at constant speed `slow <= v <= fast` between two
    walls at a distance of `room` and any position w. For the best w, a and v (grid search, then halved
    steps), the value is the root mean square residual over frames and axes, averaged over videos. The
    interval is over videos. The value detects reordered frames, jumps and stops.
    """
    x = _checked(paths, 3, "paths (N, T, 2)").astype(np.float64)
    if not 0 < slow <= fast or not room > 0:
        raise MetricError(
            f"dynamics: room = {room}, slow = {slow}, fast = {fast}; expected 0 < slow <= fast, room > 0"
        )
    axes = x.transpose(0, 2, 1).reshape(-1, x.shape[1])
    chunks = [_residual(axes[i : i + CHUNK], room, slow, fast) for i in range(0, len(axes), CHUNK)]
    return _mean(np.sqrt(np.concatenate(chunks).reshape(len(x), -1).mean(1)))


def _residual(x: np.ndarray, room: float, slow: float, fast: float) -> np.ndarray:
    """Return the mean squared distance (n,) of positions (n, T) on an axis from the nearest possible path."""
    phases, speeds = np.linspace(0, 2 * room, PHASES, endpoint=False), np.linspace(slow, fast, SPEEDS)
    a, v = (grid.ravel() for grid in np.meshgrid(phases, speeds, indexing="ij"))
    best = _misfit(x, a[None], v[None], room).argmin(1)
    a, v = a[best][:, None], v[best][:, None]
    step_a, step_v = 2 * room / PHASES, (fast - slow) / (SPEEDS - 1)
    around_a, around_v = (grid.ravel() for grid in np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"))
    errors = np.full((len(x), 1), np.inf)
    for _ in range(ROUNDS):
        step_a, step_v = step_a / 2, step_v / 2
        # Twice, because the best candidate may be two steps away.
        for _ in range(2):
            near_a, near_v = a + step_a * around_a, np.clip(v + step_v * around_v, slow, fast)
            errors = _misfit(x, near_a, near_v, room)
            best = errors.argmin(1)[:, None]
            a, v = np.take_along_axis(near_a, best, 1), np.take_along_axis(near_v, best, 1)
    return errors.min(1)


def _misfit(x: np.ndarray, a: np.ndarray, v: np.ndarray, room: float) -> np.ndarray:
    """Return the variance over time (n, k) of positions (n, T) minus candidate paths.

    `a` and `v` are (n or 1, k). The best w is the mean, which the variance removes.
    """
    distance = np.mod(a[..., None] + v[..., None] * np.arange(x.shape[1]), 2 * room)
    return (x[:, None] - np.minimum(distance, 2 * room - distance)).var(-1)


def _mean(values: np.ndarray) -> Value:
    n = len(values)
    if n < 2:
        return Value(float(values.mean()), n=n)
    return around(float(values.mean()), float(values.std(ddof=1)) / n**0.5, n)


def _checked(given: np.ndarray, dimensions: int, what: str) -> np.ndarray:
    """Return the array if it holds finite numbers with N >= 1 and T >= 2, or raise `MetricError`."""
    array = np.asarray(given)
    if array.ndim != dimensions or 0 in array.shape or array.shape[1] < 2 or array.dtype.kind not in "fiub":
        raise MetricError(
            f"expected {what} with T of 2 or more, but got {array.dtype} of shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise MetricError(f"{what} are not finite in video {np.argwhere(~np.isfinite(array))[0][0]}")
    return array
