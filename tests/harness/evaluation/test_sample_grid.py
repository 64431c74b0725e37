"""Sample grids: the position of every pixel."""

from __future__ import annotations

import numpy as np
import pytest

from harness.data.log_mel import griffin_lim
from harness.evaluation.sample_grid import LEAST, enlargement, films, image_grid, picture, png, waveform


def test_waveform_column_reaches_from_smallest_to_largest_value() -> None:
    wave = np.concatenate([np.zeros(100), np.linspace(-1, 1, 100)])
    drawn = waveform(wave, height=21, width=2)
    # Silence is one row in the middle.
    assert (np.flatnonzero(drawn[:, 0] == 0) == [10]).all()
    assert (drawn[:, 1] == 0).all()
    assert waveform(np.array([5.0, -5.0]), height=5, width=2).tolist() == [
        [0, 255],
        *[[255, 255]] * 3,
        [255, 0],
    ]


def test_films_show_frames_above_their_waveform() -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (2, 1 * 3 * 4 * 4 + 32 * 12), dtype=np.uint8)
    drawn = films(x, [(1, 3, 4, 4), (32, 12)], scale=2)
    height = 4 * 2 + 4
    assert drawn.shape == (2 * height + 2, 3 * 4 * 2)
    for row in range(2):
        top = row * (height + 2)
        for frame in range(3):
            shown = drawn[top : top + 8 : 2, frame * 8 : frame * 8 + 8 : 2]
            assert (shown == x[row, :48].reshape(3, 4, 4)[frame]).all()
        wave = griffin_lim(x[row, 48:].reshape(32, 12))
        assert (drawn[top + 8 : top + 12] == waveform(wave, 4, 24)).all()


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (3, 28, 28), (3, 5, 16, 16), (32, 128), (3, 64, 64), (3, 100, 80)]
)
def test_picture_enlarges_small_samples_by_the_least_whole_factor(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    shown, side = picture(x, [shape]), min(shape[-2:])
    factor = enlargement(shape)
    assert factor * side >= LEAST and (factor == 1 or (factor - 1) * side < LEAST)
    small = shown[::factor, ::factor]
    for row in range(factor):
        for column in range(factor):
            assert np.array_equal(shown[row::factor, column::factor], small)


def test_pixels_of_a_large_image_are_unchanged() -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 96), dtype=np.uint8)
    assert np.array_equal(picture(x, [(3, 64, 96)]), image_grid(x))


def test_picture_of_equal_samples_has_equal_bytes() -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    assert png(picture(x, [(1, 8, 8)])) == png(picture(x.copy(), [(1, 8, 8)]))
