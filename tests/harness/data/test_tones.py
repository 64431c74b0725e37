"""Tones: the pitch and timbre measured on waveforms are those of the class."""

from __future__ import annotations

import numpy as np
import pytest

from harness.data.generated.tones import CONTOURS, LENGTH, PEAK, TIMBRES, Tones
from harness.data.log_mel import RATE, mel_bytes
from tests.harness.data.pictures import opened


@pytest.fixture(scope="module")
def data() -> Tones:
    return opened("tones", "")


def pitches(wave: np.ndarray, parts: int = 9) -> np.ndarray:
    """Return the loudest frequency in Hz of equal parts of the sound."""
    sounding = np.flatnonzero(wave)
    pieces = np.array_split(wave[sounding[0] : sounding[-1]], parts)
    return np.array(
        [np.abs(np.fft.rfft(p * np.hanning(len(p)), 8192)).argmax() * RATE / 8192 for p in pieces]
    )


def test_tones_declares_its_shape_and_labels(data: Tones) -> None:
    assert (data.modality, data.classes, data.shape, len(data)) == ("audio", 12, (32, 64), 2400)
    assert np.bincount([data.sample(i).label for i in range(2400)]).tolist() == [200] * 12
    for index in (0, 7, 2399):
        np.testing.assert_array_equal(data.sample(index).x, mel_bytes(data.wave(index)))
        assert data.sample(index).x.dtype == np.uint8


def test_tones_is_deterministic_and_all_samples_differ(data: Tones) -> None:
    assert opened("tones", "", frames=16).fingerprint == opened("tones", "", frames=16).fingerprint
    assert len({data.key(index) for index in range(2400)}) == 2400


@pytest.mark.parametrize("contour", range(len(CONTOURS)))
@pytest.mark.parametrize("timbre", [0, 1])
def test_pitch_follows_its_contour(data: Tones, contour: int, timbre: int) -> None:
    """In octaves: constant, up one, down one, up one and back."""
    for repeat in range(10):
        hertz = pitches(data.wave(12 * repeat + 3 * contour + timbre))
        first, middle, last = np.log2(hertz[[0, 4, 8]])
        up = {"level": (0, 0), "rising": (0.5, 0.5), "falling": (-0.5, -0.5), "arch": (1, -1)}[
            CONTOURS[contour]
        ]
        np.testing.assert_allclose((middle - first, last - middle), up, atol=0.25)


def test_timbres_differ_by_their_power_outside_the_fundamental(data: Tones) -> None:
    """A level sine has almost none, harmonics have 1/4 + 1/9 + ... of the fundamental, noise has a band."""
    for repeat in range(10):
        peaks = {}
        for timbre in range(3):
            wave = data.wave(12 * repeat + timbre)
            power = np.abs(np.fft.rfft(wave)) ** 2
            top = power.argmax()
            peaks[TIMBRES[timbre]] = power[max(0, top - 12) : top + 13].sum() / power.sum()
        assert peaks["sine"] > 0.97 > 0.75 > peaks["harmonics"] > 0.6 > peaks["noise"]


def test_lengths_and_levels_are_within_their_limits(data: Tones) -> None:
    for index in range(0, 2400, 50):
        wave = data.wave(index)
        sounding = np.flatnonzero(wave)
        share = (sounding[-1] - sounding[0] + 1) / len(wave)
        assert LENGTH[0] - 0.01 < share < LENGTH[1] + 0.01
        assert PEAK * 0.7 < np.abs(wave).max() <= PEAK + 1e-12
