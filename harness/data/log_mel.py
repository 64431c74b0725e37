"""Sound as a picture of few rows: log-mel frames as bytes, and back to something that can be listened to.

8 kHz; frames of 256 samples every 128 under a periodic Hann window, frame j centred on sample 128 j + 64;
magnitudes of a 512-point transform; 32 triangles even in HTK's mel from 60 to 3,900 Hz. Byte 255 is a
full-scale sine, byte 0 is 80 dB below it or less: one step is 0.31 dB. Four frames last as long as one frame
of the videos here (64 ms).
"""

from __future__ import annotations

from functools import cache

import numpy as np

RATE, WINDOW, HOP, FFT, BANDS = 8_000, 256, 128, 512, 32
LOW, HIGH = 60.0, 3_900.0
"""Hz"""
RANGE = 80.0
"""dB between byte 0 and byte 255."""
FULL_SCALE = float(WINDOW)
"""What a sine of amplitude 1 sums to in a wide band: WINDOW / 4 at its peak, and 4 times that over its
lobe."""
PER_FRAME = 4
"""Mel frames in one frame of video."""
ITERATIONS, MOMENTUM = 64, 0.99
_MARGIN = (WINDOW - HOP) // 2


def mel_bytes(waves: np.ndarray) -> np.ndarray:
    """Waves (..., n), n a multiple of HOP, in [-1, 1] -> uint8 (..., BANDS, n // HOP)."""
    mel = np.abs(_transform(waves)) @ triangles()
    with np.errstate(divide="ignore"):
        decibels = 20 * np.log10(mel / FULL_SCALE)
    return np.round(255 / RANGE * np.clip(decibels + RANGE, 0, RANGE)).astype(np.uint8).swapaxes(-1, -2)


def heard(mel: np.ndarray) -> np.ndarray:
    """uint8 (BANDS, frames) -> a wave float32 (frames * HOP,) whose log-mel is near, found from a fixed
    start.

    Phases come from 64 rounds of Griffin and Lim (1984) with the momentum of Perraudin et al. (2013), from
    random phases of a fixed seed on.
    """
    magnitudes = _spread(FULL_SCALE * 10 ** ((mel.T / 255.0 - 1) * RANGE / 20) * (mel.T > 0))
    turns = np.random.Generator(np.random.Philox(key=0)).random(magnitudes.shape)
    phased, before = magnitudes * np.exp(2j * np.pi * turns), 0.0
    for _ in range(ITERATIONS):
        now = _transform(_overlapped(phased))
        ahead = now + MOMENTUM * (now - before)
        phased, before = magnitudes * ahead / np.maximum(np.abs(ahead), 1e-12), now
    return np.clip(_overlapped(phased), -1, 1).astype(np.float32)


@cache
def triangles() -> np.ndarray:
    """Weights (FFT // 2 + 1, BANDS), float64, each triangle 1 at its centre, straight in mel."""
    mel = lambda hertz: 1127 * np.log1p(np.asarray(hertz) / 700)  # noqa: E731
    edges = np.linspace(mel(LOW), mel(HIGH), BANDS + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    bins = mel(np.linspace(0, RATE / 2, FFT // 2 + 1))[:, None]
    return np.maximum(0, np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)))


def _spread(bands: np.ndarray) -> np.ndarray:
    """Magnitudes (frames, FFT // 2 + 1), none negative, whose bands are near (frames, BANDS) in least
    squares, by the multiplicative updates of Lee and Seung (2000)."""
    weights = triangles()
    wanted = bands @ weights.T
    magnitudes = wanted
    for _ in range(ITERATIONS):
        magnitudes = magnitudes * wanted / np.maximum(magnitudes @ weights @ weights.T, 1e-12)
    return magnitudes


def _hann() -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


def _transform(waves: np.ndarray) -> np.ndarray:
    """(..., n) -> (..., n // HOP, FFT // 2 + 1), silence before and after."""
    padded = np.pad(waves, [(0, 0)] * (waves.ndim - 1) + [(_MARGIN, _MARGIN)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=-1)[..., ::HOP, :]
    return np.fft.rfft(frames * _hann(), FFT)


def _overlapped(spectra: np.ndarray) -> np.ndarray:
    """The wave (frames * HOP,) whose transform is nearest to (frames, FFT // 2 + 1) in least squares."""
    frames = np.fft.irfft(spectra, FFT)[:, :WINDOW] * _hann()
    length = (len(frames) - 1) * HOP + WINDOW
    total, weight = np.zeros(length), np.zeros(length)
    for number, frame in enumerate(frames):
        total[number * HOP : number * HOP + WINDOW] += frame
        weight[number * HOP : number * HOP + WINDOW] += _hann() ** 2
    return (total / np.maximum(weight, 1e-9))[_MARGIN : length - _MARGIN]
