"""Moving digits: paths against step-by-step simulation, pixels against scipy and the paths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import shift

from harness.data.generated.moving_digits import (
    DIGIT,
    FAST,
    ROOM,
    SIDE,
    SLOW,
    MovingDigits,
    placed,
    reflected,
)
from harness.data.open import split
from harness.errors import UserError
from tests.harness.data.pictures import opened


@pytest.fixture(scope="module")
def data() -> MovingDigits:
    return opened("moving_digits", "")


def test_moving_digits_declares_its_shape_and_labels(data: MovingDigits) -> None:
    assert (data.modality, data.classes, data.shape, len(data)) == ("video", 10, (1, 16, 16, 16), 3594)
    sample = data.sample(1797 + 3)
    assert sample.x.shape == data.shape and sample.x.dtype == np.uint8
    assert sample.label == opened("digits", "").sample(3).label


def test_moving_digits_is_deterministic_and_shorter_clips_are_prefixes(data: MovingDigits) -> None:
    again, short = opened("moving_digits", ""), opened("moving_digits", "", frames=8)
    assert again.fingerprint == data.fingerprint != short.fingerprint
    for index in (0, 1797, 3593):
        np.testing.assert_array_equal(short.sample(index).x, data.sample(index).x[:, :8])
    with pytest.raises(UserError, match=r"data\.frames = 1"):
        opened("moving_digits", "", frames=1)


def test_centre_of_mass_follows_the_path(data: MovingDigits) -> None:
    """The centre of mass of every frame is the digit's corner plus the centre of mass of its image."""
    digits = opened("digits", "")
    for index in range(0, 3594, 100):
        image, x = digits.sample(index % 1797).x[0].astype(float), data.sample(index).x[0].astype(float)
        np.testing.assert_allclose(x.sum((1, 2)), image.sum(), rtol=5e-3)
        for axis in (0, 1):
            along, within = x.sum(2 - axis), image.sum(1 - axis)
            centre = along @ np.arange(SIDE) / along.sum(1)
            offset = within @ np.arange(DIGIT) / within.sum()
            np.testing.assert_allclose(centre, data.position[index][:, axis] + offset, atol=0.02)


def test_placed_agrees_with_scipy() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (1, 8, 8))
    corner = np.array([[[2.25, 5.5], [0.0, 8.0], [7.9, 0.1]]])
    page = np.zeros((SIDE, SIDE))
    page[:8, :8] = image[0]
    for found, by in zip(placed(image, corner)[0], corner[0], strict=True):
        np.testing.assert_allclose(found, shift(page, by, order=1, mode="grid-constant"), atol=0.5001)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.floats(0, ROOM), st.floats(-FAST, FAST))
def test_reflected_agrees_with_a_simulation_in_small_steps(start: float, velocity: float) -> None:
    """The simulated point moves in small steps and turns at each wall."""
    position, speed, steps, path = start, velocity, 64, []
    for _ in range(10):
        path.append(position)
        for _ in range(steps):
            position += speed / steps
            if position < 0 or position > ROOM:
                position, speed = (-position if position < 0 else 2 * ROOM - position), -speed
    found, _ = reflected(np.array([[start, start]]), np.array([[velocity, velocity]]), np.arange(10))
    np.testing.assert_allclose(found[0, :, 0], path, atol=1e-9)


def test_velocity_is_the_difference_to_the_next_position(data: MovingDigits) -> None:
    ahead = data.position[:, :-1] + data.velocity[:, :-1]
    free = (ahead > 0) & (ahead < ROOM)
    assert 0.7 < free.mean() < 0.95
    np.testing.assert_allclose(data.position[:, 1:][free], ahead[free], atol=1e-9)
    assert (np.abs(data.velocity) >= SLOW).all() and (np.abs(data.velocity) <= FAST).all()
    assert (data.position >= 0).all() and (data.position <= ROOM).all()


def test_both_videos_of_a_digit_are_on_one_side_of_the_split(data: MovingDigits) -> None:
    held_out = set(split(data, 0.1).held_out.tolist())
    assert all((index in held_out) == (index + 1797 in held_out) for index in range(1797))
    assert 250 < len(held_out) < 470
