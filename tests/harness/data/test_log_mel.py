"""Log-mel bytes against known levels, times and pitches, and their reconstruction to waveforms."""

from __future__ import annotations

import numpy as np
import pytest

from harness.data.log_mel import BANDS, FFT, HOP, RANGE, RATE, WINDOW, griffin_lim, mel_bytes, triangles

STEP = RANGE / 255


def sine(hertz: float, amplitude: float = 1.0, samples: int = 8192) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(samples) / RATE)


def centre(band: int) -> float:
    """Return the frequency in Hz of the peak of a triangle."""
    return float(np.argmax(triangles()[:, band]) * RATE / FFT)


@pytest.mark.parametrize("band", [6, 15, 25])
def test_tone_is_loudest_in_its_band_with_its_level_in_decibels(band: int) -> None:
    loud, soft = (mel_bytes(sine(centre(band), a))[:, 8:-8].astype(int) for a in (1.0, 0.1))
    assert (loud.argmax(0) == band).all()
    np.testing.assert_allclose((loud - soft)[band] * STEP, 20, atol=STEP)
    # A full-scale sine reaches 0 dB in a wide band and never exceeds it.
    assert (loud < 255).all() and (loud[25] > 245).all() == (band == 25)


def test_mel_bytes_follows_its_definition() -> None:
    """Frame j, centred on sample 128 j + 64, is windowed, transformed and weighted on its own."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 1024)
    window = np.hanning(WINDOW + 1)[:-1]
    mel = mel_bytes(wave)
    assert mel.shape == (BANDS, 8)
    for j in (1, 3, 6):
        begin = HOP * j + HOP // 2 - WINDOW // 2
        bands = np.abs(np.fft.rfft(window * wave[begin : begin + WINDOW], FFT)) @ triangles()
        level = 20 * np.log10(bands / WINDOW)
        np.testing.assert_array_equal(mel[:, j], np.round((level + RANGE).clip(0, RANGE) / STEP))


def test_mel_bytes_is_zero_for_silence_and_independent_across_a_batch() -> None:
    waves = np.stack([np.zeros(2048), sine(500, samples=2048)])
    assert not mel_bytes(waves)[0].any()
    np.testing.assert_array_equal(mel_bytes(waves)[1], mel_bytes(waves[1]))


def test_triangles_sum_to_one_between_their_limits() -> None:
    hertz = np.linspace(0, RATE / 2, FFT // 2 + 1)
    inside = (hertz > 120) & (hertz < 3600)
    np.testing.assert_allclose(triangles().sum(1)[inside], 1)


def test_griffin_lim_reconstructs_the_spectrogram() -> None:
    """The loud parts of a tone and of white noise with a gap are reconstructed within 3 dB, with the same
    pitch."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8192)
    noise[3000:5000] = 0
    for wave in (sine(700, 0.5), noise):
        mel = mel_bytes(wave)
        again = griffin_lim(mel)
        assert (
            again.shape == wave.shape
            and again.dtype == np.float32
            and np.array_equal(again, griffin_lim(mel))
        )
        # Within 19 dB of the loudest.
        loud = mel > mel.max() - 60
        assert np.abs(mel_bytes(again).astype(int) - mel)[loud].mean() * STEP < 3
    spectrum = np.abs(np.fft.rfft(griffin_lim(mel_bytes(sine(700, 0.5)))))
    assert abs(spectrum.argmax() * RATE / 8192 - 700) < 40
    assert not griffin_lim(np.zeros((BANDS, 16), np.uint8)).any()
