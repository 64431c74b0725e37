"""The log-mel front end of VGGish and YAMNet: from 16 kHz audio to 64 mel bands at 100 frames per second.

Frames have 400 samples and a hop of 160, under a periodic Hann window. The magnitudes of a 512-point FFT are
summed by 64 triangular filters, evenly spaced in HTK's mel from 125 to 7,500 Hz, then mapped to log(x +
offset). The offset is 0.01 for VGGish (tensorflow/models, audioset/vggish/vggish_params.py) and 0.001 for
YAMNet (audioset/yamnet/params.py).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

RATE, FRAME, HOP, FFT, BANDS = 16_000, 400, 160, 512, 64
LOW, HIGH = 125.0, 7_500.0
"""Frequency range of the mel bands in Hz."""
PATCH = 96
"""Number of frames in the networks' input."""
WINDOW = (PATCH - 1) * HOP + FRAME
"""Number of samples in a patch: 15,600, or 0.975 s."""


def log_mel(waves: Tensor, offset: float) -> Tensor:
    """Return the log-mel spectrograms (B, 1 + (n - FRAME) // HOP, BANDS) of waves float32 (B, n) at 16 kHz.

    n must be at least FRAME; samples after the last frame are dropped.
    """
    frames = waves.unfold(1, FRAME, HOP) * torch.hann_window(FRAME, device=waves.device)
    magnitudes = torch.fft.rfft(frames, n=FFT).abs()
    return torch.log(magnitudes @ torch.from_numpy(mel_matrix()).to(magnitudes) + offset)


@cache
def mel_matrix() -> np.ndarray:
    """Return the filters (FFT // 2 + 1, BANDS), float64: triangles, linear in mel, with a peak of 1."""
    edges = np.linspace(_mel(LOW), _mel(HIGH), BANDS + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    bins = _mel(np.linspace(0, RATE / 2, FFT // 2 + 1))[:, None]
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    return np.maximum(0, np.minimum(rising, falling))


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    return 1127 * np.log1p(np.asarray(hertz) / 700)
