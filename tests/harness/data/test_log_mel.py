"""Log-mel bytes: known levels, times and pitches; and a wave that sounds as they say."""

from __future__ import annotations

import numpy as np
import pytest

from harness.data.log_mel import BANDS, FFT, HOP, RANGE, RATE, WINDOW, heard, mel_bytes, triangles

STEP = RANGE / 255


def sine(hertz: float, amplitude: float = 1.0, samples: int = 8192) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)


def centre(band: int) -> float:
    """Hz at the tip of a triangle."""
    return float(np.argmax(triangles()[:, band]) * RATE / FFT)


@pytest.mark.parametrize("band", [6, 15, 25])
def test_a_tone_is_loudest_in_its_band_and_its_level_is_in_decibels(band: int) -> None:
    loud, soft = (mel_bytes(sine(centre(band), a))[:, 8:-8].astype(int) for a in (1.0, 0.1))
    assert (loud.argmax(0) == band).all()
    np.testing.assert_allclose((loud - soft)[band] * STEP, 20, atol=STEP)
    assert (loud < 255).all() and (loud[25] > 245).all() == (band == 25)  # 0 dB in a wide band, never above


def test_frames_against_the_definition() -> None:
    """Frame j is centred on sample 128 j + 64: windowed, transformed and weighted one by one."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 1024)
    window = np.hanning(WINDOW + 1)[:-1]
    mel = mel_bytes(wave)
    assert mel.shape == (BANDS, 8)
    for j in (1, 3, 6):
        begin = HOP * j + HOP // 2 - WINDOW // 2
        bands = np.abs(np.fft.rfft(window * wave[begin : begin + WINDOW], FFT)) @ triangles()
        level = 20 * np.log10(bands / WINDOW)
        np.testing.assert_array_equal(mel[:, j], np.round((level + RANGE).clip(0, RANGE) / STEP))


def test_silence_is_zero_and_batches_are_rows() -> None:
    waves = np.stack([np.zeros(2048), sine(500, samples=2048)])
    assert not mel_bytes(waves)[0].any()
    np.testing.assert_array_equal(mel_bytes(waves)[1], mel_bytes(waves[1]))


def test_triangles_cover_what_lies_between() -> None:
    hertz = np.linspace(0, RATE / 2, FFT // 2 + 1)
    inside = (hertz > 120) & (hertz < 3600)
    np.testing.assert_allclose(triangles().sum(1)[inside], 1)


def test_what_is_heard_has_the_same_picture() -> None:
    """A tone, and white noise with a gap, come back within a few decibels where they are loud; the pitch is
    kept."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8192)
    noise[3000:5000] = 0
    for wave in (sine(700, 0.5), noise):
        mel = mel_bytes(wave)
        again = heard(mel)
        assert again.shape == wave.shape and again.dtype == np.float32 and np.array_equal(again, heard(mel))
        loud = mel > mel.max() - 60  # within 19 dB of the loudest
        assert np.abs(mel_bytes(again).astype(int) - mel)[loud].mean() * STEP < 3
    spectrum = np.abs(np.fft.rfft(heard(mel_bytes(sine(700, 0.5)))))
    assert abs(spectrum.argmax() * RATE / 8192 - 700) < 40
    assert not heard(np.zeros((BANDS, 16), np.uint8)).any()
