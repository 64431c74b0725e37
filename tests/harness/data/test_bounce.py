"""Bouncing digits, checked against the equations of motion and the spectrum of their clicks."""

from __future__ import annotations

import numpy as np
import pytest

from harness.data.dataset import shapes_of, x_shape
from harness.data.generated.bounce import LONGEST, LOWEST, Bounce
from harness.data.generated.moving_digits import ROOM
from harness.data.log_mel import SAMPLES_PER_FRAME, mel_bytes
from harness.data.open import split
from tests.harness.data.pictures import opened


@pytest.fixture(scope="module")
def data() -> Bounce:
    return opened("bounce", "")


def test_bounce_declares_its_parts_and_splits_by_digit(data: Bounce) -> None:
    assert (data.modality, data.classes, len(data)) == ("joint", 10, 3594)
    assert shapes_of(data) == ((1, 16, 16, 16), (32, 64)) and x_shape(data) == (4096 + 2048,)
    sample = data.sample(20)
    assert sample.x.shape == (6144,) and sample.x.dtype == np.uint8
    np.testing.assert_array_equal(sample.x[4096:].reshape(32, 64), mel_bytes(data.wave(20)))
    assert opened("bounce", "", frames=4).fingerprint == opened("bounce", "", frames=4).fingerprint
    held_out = set(split(data, 0.1).held_out.tolist())
    assert all((index in held_out) == (index + 1797 in held_out) for index in range(1797))


def test_gravity_is_constant_and_no_energy_is_lost(data: Bounce) -> None:
    """The second difference of the height is constant unless an impact falls between the three frames."""
    height = ROOM - data.position[..., 0]
    gravity = 8 * ROOM / LONGEST**2
    checked = 0
    for index in range(0, 3594, 40):
        times = data.impacts(index)
        for frame in range(1, 15):
            if not ((times > frame - 1) & (times < frame + 1)).any():
                second = height[index, frame - 1] - 2 * height[index, frame] + height[index, frame + 1]
                np.testing.assert_allclose(second, -gravity, atol=1e-9)
                checked += 1
    assert checked > 500
    assert height.min() >= 0 and height.max() <= ROOM + 1e-9
    highest = LONGEST**-2 * data.period**2 * ROOM
    assert (highest >= LOWEST - 1e-9).all() and (height.max(1) <= highest + 1e-9).all()


def test_impacts_are_the_times_of_zero_height(data: Bounce) -> None:
    for index in range(0, 3594, 40):
        times = data.impacts(index)
        np.testing.assert_allclose(np.diff(times), data.period[index])
        assert 1 <= len(times) <= 4 and times.min() >= -0.5 and times.max() < 15.5
        phase = np.mod((times - data.first[index]) / data.period[index] + 0.5, 1) - 0.5
        np.testing.assert_allclose(phase, 0, atol=1e-9)
        assert times[0] - data.period[index] < -0.5 and times[-1] + data.period[index] >= 15.5


def test_click_begins_at_each_impact_with_the_pitch_of_the_digit(data: Bounce) -> None:
    for index in range(0, 3594, 40):
        wave, label = data.wave(index), data.sample(index).label
        begins = np.ceil((data.impacts(index) + 0.5) * SAMPLES_PER_FRAME).astype(int)
        for begin in begins[begins + 600 < len(wave)]:
            before, after = np.abs(wave[max(0, begin - 50) : begin]), np.abs(wave[begin : begin + 30])
            assert after.max() > 0.4 and before.max(initial=0) < 0.02
            spectrum = np.abs(np.fft.rfft(wave[begin : begin + 400], 8000))
            assert abs(spectrum.argmax() / (500 * 2 ** (label / 5)) - 1) < 0.03
        assert np.abs(wave).max() < 1
