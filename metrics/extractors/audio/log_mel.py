"""The log-mel front end that VGGish and YAMNet share: 16 kHz in, 100 frames a second of 64 mel bands out.

Frames of 400 samples every 160, under a periodic Hann window, magnitudes of a 512-point transform, 64
triangles that are even in HTK's mel from 125 to 7,500 Hz, then log(. + offset). VGGish's offset is 0.01
(tensorflow/models, audioset/vggish/vggish_params.py), YAMNet's 0.001 (audioset/yamnet/params.py).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

RATE, FRAME, HOP, FFT, BANDS = 16_000, 400, 160, 512, 64
LOW, HIGH = 125.0, 7_500.0
"""Hz"""
PATCH = 96
"""Frames that the networks see at once."""
WINDOW = (PATCH - 1) * HOP + FRAME
"""Samples that give a patch: 15,600, 0.975 s."""


def log_mel(waves: Tensor, offset: float) -> Tensor:
    """float32 (B, n) at 16 kHz, n >= FRAME -> (B, 1 + (n - FRAME) // HOP, BANDS); samples after the last
    frame are left out."""
    frames = waves.unfold(1, FRAME, HOP) * torch.hann_window(FRAME, device=waves.device)
    magnitudes = torch.fft.rfft(frames, n=FFT).abs()
    return torch.log(magnitudes @ torch.from_numpy(mel_matrix()).to(magnitudes) + offset)


@cache
def mel_matrix() -> np.ndarray:
    """Weights (FFT // 2 + 1, BANDS), float64, each triangle 1 at its centre, straight in mel."""
    edges = np.linspace(_mel(LOW), _mel(HIGH), BANDS + 2)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    bins = _mel(np.linspace(0, RATE / 2, FFT // 2 + 1))[:, None]
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    return np.maximum(0, np.minimum(rising, falling))


def _mel(hertz: np.ndarray | float) -> np.ndarray:
    return 1127 * np.log1p(np.asarray(hertz) / 700)
