"""Synchrony: detectors against the true times of `bounce`, pairs against brute force, and noise floors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.dataset import shapes_of
from harness.data.generated.bounce import Bounce
from harness.data.log_mel import PER_FRAME
from metrics import MetricError
from metrics.domain.audio_video_sync import clicks, impacts, synchrony
from tests.harness.data.pictures import opened

CLIPS = 400


@pytest.fixture(scope="module")
def data() -> Bounce:
    return opened("bounce", "")


@pytest.fixture(scope="module")
def parts(data: Bounce) -> tuple[np.ndarray, np.ndarray]:
    x = np.stack([data.sample(index).x for index in range(CLIPS)])
    (_, *grey), sound = shapes_of(data)
    return x[:, :4096].reshape(-1, *grey), x[:, 4096:].reshape(-1, *sound)


def times(data: Bounce) -> list[np.ndarray]:
    return [data.impacts(index) for index in range(CLIPS)]


def test_impacts_are_detected_at_their_true_times(data: Bounce, parts: tuple[np.ndarray, np.ndarray]) -> None:
    """All impacts a frame or more from the ends, and no others, are found within a twentieth of a frame."""
    found = synchrony(times(data), impacts(parts[0]), frames=16)
    assert found.share.mean == 1 and np.abs(found.offsets).max() < 0.05


def test_clicks_are_detected_at_their_true_times(data: Bounce, parts: tuple[np.ndarray, np.ndarray]) -> None:
    """The tolerance is one sound frame, a quarter of a video frame."""
    found = synchrony(times(data), clicks(parts[1], per_frame=PER_FRAME), frames=16)
    assert found.share.mean == 1 and np.abs(found.offsets).max() < 1 / PER_FRAME


def test_synchrony_is_1_for_real_videos_and_low_for_other_sound_and_noise(
    parts: tuple[np.ndarray, np.ndarray],
) -> None:
    """In real videos all pairs are within one frame; with another video's sound or noise far fewer are."""
    seen, heard = impacts(parts[0]), clicks(parts[1], per_frame=PER_FRAME)
    real = synchrony(seen, heard, frames=16)
    assert real.share.mean == 1 == real.share.low and real.median < 0.15 and real.share.n == CLIPS
    other = synchrony(seen, [*heard[7:], *heard[:7]], frames=16)
    assert other.share.high < 0.4 and other.median > 1
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, parts[1].shape, dtype=np.uint8)
    assert synchrony(seen, clicks(noise, per_frame=PER_FRAME), frames=16).share.high < 0.4


@pytest.mark.parametrize("late", [-2, -1, 1, 2])
def test_delayed_sound_shifts_the_offsets(parts: tuple[np.ndarray, np.ndarray], late: int) -> None:
    """Offsets shift by the same number of frames as the sound, within the tolerance or beyond it."""
    moved = np.roll(parts[1], late * PER_FRAME, axis=2)
    seen, heard = impacts(parts[0]), clicks(moved, per_frame=PER_FRAME)
    offsets = [
        time - shown[np.abs(time - late - shown).argmin()]
        for shown, times in zip(seen, heard, strict=True)
        for time in times[(times > 3) & (times < 12)]
    ]
    assert len(offsets) > 400 and np.median(offsets) == pytest.approx(late, abs=0.15)
    if abs(late) > 1:
        assert synchrony(seen, heard, frames=16).share.high < 0.4


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.lists(st.floats(1.5, 13.5), max_size=4, unique=True),
    st.lists(st.floats(1.5, 13.5), max_size=4, unique=True),
)
def test_pairing_is_the_best_of_all_one_to_one_pairings(seen: list[float], heard: list[float]) -> None:
    """The number of pairs within one frame is the maximum over all one-to-one pairings."""
    if not seen and not heard:
        return
    few, many = sorted((seen, heard), key=len)
    best = max(
        sum(abs(a - b) <= 1 for a, b in zip(few, chosen, strict=True))
        for chosen in itertools.permutations(many, len(few))
    )
    found = synchrony([np.array(seen)], [np.array(heard)], frames=16)
    assert found.share.mean == pytest.approx(2 * best / (len(seen) + len(heard)))
    assert len(found.offsets) == len(few)


def test_share_equals_closed_forms() -> None:
    def of(seen: list[float], heard: list[float]) -> float:
        return float(synchrony([np.array(seen)], [np.array(heard)], frames=16).share)

    assert of([3, 8], [3.9, 7.1]) == 1
    assert of([3, 8], [4.1, 8.0]) == 0.5  # one impact and one click are unpaired
    assert of([3, 8], [3, 8, 5, 11]) == pytest.approx(4 / 6)  # surplus clicks
    assert of([3, 8], [0.2, 3, 8, 15.1]) == 1  # the partner of an event at the end may be outside
    assert of([0.4, 8], [0.2, 8]) == 1
    assert of([3], []) == 0
    both = synchrony([np.array([3.0]), np.array([])], [np.array([3.5]), np.array([])], frames=16)
    assert both.share.mean == 1 and both.offsets.tolist() == [0.5] and both.median == 0.5


def test_interval_covers_the_true_share() -> None:
    """It covers the true share in about 95 of 100 sets of videos."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(200):
        hits = random.random(80) < 0.8
        heard = [np.array([8.0 if hit else 4.0]) for hit in hits]
        value = synchrony([np.array([8.0])] * 80, heard, frames=16).share
        covered += value.low <= 0.8 <= value.high
    assert 180 <= covered <= 199


def test_invalid_inputs_are_rejected() -> None:
    with pytest.raises(MetricError, match="but got 2 and 1"):
        synchrony([np.array([1.0])] * 2, [np.array([1.0])], frames=16)
    with pytest.raises(MetricError, match="neither a visible impact nor an audible click"):
        synchrony([np.array([])], [np.array([])], frames=16)
    with pytest.raises(MetricError, match=r"but got float64 of shape \(1, 2, 3\)"):
        clicks(np.zeros((1, 2, 3)), per_frame=4)
