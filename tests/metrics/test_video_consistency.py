"""Temporal consistency: closed forms, plain loops, and real against frozen, shuffled and noisy videos."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.ndimage import center_of_mass

from harness.data.generated.moving_digits import FAST, ROOM, SLOW, MovingDigits
from metrics import MetricError
from metrics.domain.video_consistency import agreement, centres, drift, dynamics_error
from tests.harness.data.pictures import opened

CLIPS = 120
WORLD = {"room": ROOM, "slow": SLOW, "fast": FAST}


@pytest.fixture(scope="module")
def data() -> MovingDigits:
    return opened("moving_digits", "")


@pytest.fixture(scope="module")
def videos(data: MovingDigits) -> np.ndarray:
    return np.stack([data.sample(index).x[0] for index in range(CLIPS)])


def shuffled(frames: np.ndarray, seed: int = 0) -> np.ndarray:
    """Shuffle the frames within each clip."""
    random = np.random.default_rng(seed)
    return np.stack([clip[random.permutation(len(clip))] for clip in frames])


def mixed(frames: np.ndarray, seed: int = 0) -> np.ndarray:
    """Shuffle frames among clips."""
    flat = frames.reshape(-1, *frames.shape[2:])
    return flat[np.random.default_rng(seed).permutation(len(flat))].reshape(frames.shape)


# Agreement


def test_agreement_equals_a_count_of_pairs() -> None:
    predicted = np.random.default_rng(0).integers(0, 3, (7, 5))
    shares = [np.mean([a == b for a, b in itertools.combinations(clip, 2)]) for clip in predicted]
    value = agreement(predicted)
    assert value.mean == pytest.approx(np.mean(shares)) and value.n == 7
    half = 1.96 * np.std(shares, ddof=1) / np.sqrt(7)
    assert (value.low, value.high) == pytest.approx((value.mean - half, value.mean + half), abs=1e-4)


def test_agreement_is_1_for_real_videos_and_1_over_classes_for_mixed_ones(data: MovingDigits) -> None:
    """A classifier that is right in 95 % of frames, on ten classes: 0.95^2 + 0.05^2 / 9, and about 1/10 when
    mixed."""
    random = np.random.default_rng(0)
    labels = np.repeat([[data.sample(index).label] for index in range(1000)], 16, axis=1)
    assert agreement(labels).mean == 1
    seen = np.where(
        random.random(labels.shape) < 0.95, labels, (labels + random.integers(1, 10, labels.shape)) % 10
    )
    assert agreement(seen).mean == pytest.approx(0.95**2 + 0.05**2 / 9, abs=0.01)
    assert agreement(mixed(labels)).mean == pytest.approx(0.1, abs=0.01)


# Drift


def test_drift_equals_distances_of_single_pairs() -> None:
    x = np.random.default_rng(0).normal(size=(5, 4, 3)) + 10 * np.arange(5)[:, None, None]

    def relative(x: np.ndarray) -> float:
        own = [((c[s] - c[t]) ** 2).sum() for c in x for s, t in itertools.combinations(range(4), 2)]
        across = [((p - q) ** 2).sum() for a, b in itertools.combinations(x, 2) for p in a for q in b]
        return np.mean(own) / np.mean(across)

    found = drift(x)
    assert found.relative.mean == pytest.approx(relative(x))
    across = np.mean([((p - q) ** 2).sum() for a, b in itertools.combinations(x, 2) for p in a for q in b])
    lags = [
        np.mean([((c[t + k] - c[t]) ** 2).sum() for c in x for t in range(4 - k)]) / across for k in (1, 2, 3)
    ]
    np.testing.assert_allclose(found.by_lag, lags)
    without = np.array([relative(np.delete(x, i, 0)) for i in range(5)])
    half = 1.96 * np.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    assert found.relative.high - found.relative.mean == pytest.approx(half, rel=1e-4)


def test_drift_is_0_for_frozen_videos_and_1_for_mixed_ones(videos: np.ndarray) -> None:
    """By the brightness of each frame, which stays with a digit: next to 0 when true, 0 when frozen, 1 when
    mixed."""
    brightness = videos.sum((2, 3))[..., None]
    assert drift(np.repeat(brightness[:, :1], 16, 1)).relative.mean == pytest.approx(0, abs=1e-12)
    assert drift(brightness).relative.mean < 0.01
    one = drift(mixed(brightness)).relative
    assert one.low < 1 < one.high and one.high - one.low < 0.2


# Motion


def test_centres_equal_scipy(videos: np.ndarray) -> None:
    found = centres(videos[:5])
    for clip, rows in zip(videos[:5], found, strict=True):
        np.testing.assert_allclose(rows, [center_of_mass(frame.astype(float)) for frame in clip])
    np.testing.assert_array_equal(centres(np.zeros((1, 2, 5, 7), np.uint8))[0], [[2, 3], [2, 3]])


def test_dynamics_error_is_0_for_real_paths_and_high_for_others(
    data: MovingDigits, videos: np.ndarray
) -> None:
    """Oracle: the digits' own paths, and the paths read from their pixels. Floors: another order, one frame,
    noise."""
    assert dynamics_error(data.position[:CLIPS], **WORLD).mean < 2e-3
    seen = centres(videos)
    oracle = dynamics_error(seen, **WORLD)
    assert oracle.mean < 0.005 and oracle.n == CLIPS
    noise = np.random.default_rng(0).integers(0, 256, videos.shape, dtype=np.uint8)
    for floor in (shuffled(seen), np.repeat(seen[:, :1], 16, 1), centres(noise)):
        assert dynamics_error(floor, **WORLD).low > 0.9


def test_dynamics_error_ignores_the_position_of_walls_and_measures_noise(data: MovingDigits) -> None:
    random = np.random.default_rng(0)
    paths = data.position[:CLIPS] + random.uniform(-5, 5, (CLIPS, 1, 2))
    assert dynamics_error(paths, **WORLD).mean < 2e-3
    trembling = dynamics_error(paths + random.normal(0, 0.2, paths.shape), **WORLD)
    # Three numbers of sixteen are fitted.
    assert trembling.mean == pytest.approx(0.2 * np.sqrt(13 / 16), rel=0.1)


def test_dynamics_error_detects_a_jump(data: MovingDigits) -> None:
    paths = np.array(data.position[:CLIPS])
    paths[:, 8:] = paths[::-1, 8:]
    assert dynamics_error(paths, **WORLD).low > 0.4


def test_invalid_inputs_are_rejected() -> None:
    with pytest.raises(MetricError, match=r"but got int64 of shape \(3, 1\)"):
        agreement(np.zeros((3, 1), int))
    with pytest.raises(MetricError, match="needs 3 or more, but got 2"):
        drift(np.ones((2, 3, 1)))
    with pytest.raises(MetricError, match="all videos have the same features"):
        drift(np.tile(np.random.default_rng(0).normal(size=(1, 4, 3)), (5, 1, 1)) * 0 + 1)
    with pytest.raises(MetricError, match="not finite in video 1"):
        centres(np.where(np.arange(3)[:, None, None, None] == 1, np.nan, np.ones((3, 2, 4, 4))))
    with pytest.raises(MetricError, match="the lowest value is -1"):
        centres(-np.ones((1, 2, 4, 4)))
    with pytest.raises(MetricError, match=r"slow = 0"):
        dynamics_error(np.zeros((1, 4, 2)), room=8, slow=0, fast=1)
