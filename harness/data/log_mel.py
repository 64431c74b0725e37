"""Log-mel spectrograms as bytes, and waveforms reconstructed from them.

The sampling rate is 8 kHz. Frames are 256 samples, every 128, under a periodic Hann window; frame j is
centred on sample 128 j + 64. Magnitudes come from a 512-point transform. The filter bank has 32 triangles,
equally spaced in HTK's mel from 60 to 3,900 Hz. Byte 255 is a full-scale sine, byte 0 is 80 dB below it or
less, so one step is 0.31 dB. Four frames last as long as one frame of the generated videos (64 ms).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

RATE, WINDOW, HOP, FFT, BANDS = 8_000, 256, 128, 512, 32
LOW, HIGH = 60.0, 3_900.0
"""Limits of the filter bank in Hz."""
RANGE = 80.0
"""dB between byte 0 and byte 255."""
FULL_SCALE = float(WINDOW)
"""Output of a wide band for a sine of amplitude 1. The spectrum peaks at WINDOW / 4, and the main lobe sums
to 4 times that."""
PER_FRAME = 4
"""Log-mel frames for each frame of video."""
SAMPLES_PER_FRAME = HOP * PER_FRAME
"""Audio samples in one frame of video: 64 ms, or 15.625 frames a second."""
AT_ONCE = 8
"""Waveforms that are transformed together: few enough for the cache of a core."""
ITERATIONS, MOMENTUM = 64, 0.99
_MARGIN = (WINDOW - HOP) // 2


def mel_bytes(waves: np.ndarray) -> np.ndarray:
    """Convert waveforms (..., n) in [-1, 1], n a multiple of HOP, to uint8 (..., BANDS, n // HOP)."""
    mel = np.abs(_transform(waves)) @ triangles()
    with np.errstate(divide="ignore"):
        decibels = 20 * np.log10(mel / FULL_SCALE)
    return np.round(255 / RANGE * np.clip(decibels + RANGE, 0, RANGE)).astype(np.uint8).swapaxes(-1, -2)


def mels_of(wave: Callable[[int], np.ndarray], count: int) -> np.ndarray:
    """Return the spectrograms of `count` waveforms of equal length, uint8 (count, BANDS, frames)."""
    parts = np.array_split(np.arange(count), -(-count // AT_ONCE))
    return np.concatenate([mel_bytes(np.stack([wave(int(index)) for index in part])) for part in parts])


def griffin_lim(mel: np.ndarray) -> np.ndarray:
    """Reconstruct a waveform float32 (frames * HOP,) whose log-mel spectrogram is close to uint8
    (BANDS, frames).

    Runs 64 iterations of Griffin and Lim (1984) with the momentum of Perraudin et al. (2013). The initial
    phases are random with a fixed seed, so the result is deterministic.
    """
    magnitudes = _linear_magnitudes(FULL_SCALE * 10 ** ((mel.T / 255.0 - 1) * RANGE / 20) * (mel.T > 0))
    phases = np.random.Generator(np.random.Philox(key=0)).random(magnitudes.shape)
    spectra, previous = magnitudes * np.exp(2j * np.pi * phases), 0.0
    for _ in range(ITERATIONS):
        projected = _transform(_inverse_transform(spectra))
        accelerated = projected + MOMENTUM * (projected - previous)
        spectra = magnitudes * accelerated / np.maximum(np.abs(accelerated), 1e-12)
        previous = projected
    return np.clip(_inverse_transform(spectra), -1, 1).astype(np.float32)


@cache
def triangles() -> np.ndarray:
    """Return the mel filter bank, float64 (FFT // 2 + 1, BANDS): triangles of height 1, linear in mel."""
    mel = lambda hertz: 1127 * np.log1p(np.asarray(hertz) / 700)  # noqa: E731
    edges = np.linspace(mel(LOW), mel(HIGH), BANDS + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    bins = mel(np.linspace(0, RATE / 2, FFT // 2 + 1))[:, None]
    return np.maximum(0, np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)))


def _linear_magnitudes(bands: np.ndarray) -> np.ndarray:
    """Return non-negative magnitudes (frames, FFT // 2 + 1) whose mel bands fit (frames, BANDS) in least
    squares, by the multiplicative updates of Lee and Seung (2000)."""
    weights = triangles()
    target = bands @ weights.T
    magnitudes = target
    for _ in range(ITERATIONS):
        magnitudes = magnitudes * target / np.maximum(magnitudes @ weights @ weights.T, 1e-12)
    return magnitudes


@cache
def _hann() -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


def _transform(waves: np.ndarray) -> np.ndarray:
    """Return the short-time Fourier transform (..., n // HOP, FFT // 2 + 1) of (..., n), padded with
    silence."""
    padded = np.pad(waves, [(0, 0)] * (waves.ndim - 1) + [(_MARGIN, _MARGIN)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=-1)[..., ::HOP, :]
    return np.fft.rfft(frames * _hann(), FFT)


def _inverse_transform(spectra: np.ndarray) -> np.ndarray:
    """Return the waveform (frames * HOP,) whose transform fits (frames, FFT // 2 + 1) in least squares."""
    frames = np.fft.irfft(spectra, FFT)[:, :WINDOW] * _hann()
    length = (len(frames) - 1) * HOP + WINDOW
    total, weight = np.zeros(length), np.zeros(length)
    for number, frame in enumerate(frames):
        total[number * HOP : number * HOP + WINDOW] += frame
        weight[number * HOP : number * HOP + WINDOW] += _hann() ** 2
    return (total / np.maximum(weight, 1e-9))[_MARGIN : length - _MARGIN]
