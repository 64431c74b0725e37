"""Waveforms at the sampling rate of a codec, and the log-mel spectrograms of decoded ones.

A data set with waveforms has `wave(index, rate)`, float64 (samples,) in [-1, 1], as long as the spectrogram
of the sample.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.log_mel import HOP, RATE, mel_bytes

if TYPE_CHECKING:
    from torch import Tensor


def wave_length(frames: int, rate: int) -> int:
    """Return the number of samples at a rate that last as long as a number of log-mel frames, rounded up."""
    return math.ceil(frames * HOP * rate / RATE)


def codec_input_shape(shape: tuple[int, ...], rate: int | None) -> tuple[int, ...]:
    """Return the shape of a codec's input for samples of a shape.

    Without a rate it is the sample itself. With one it is the waveform (1, samples) of a spectrogram
    (bands, frames).
    """
    return shape if rate is None else (1, wave_length(shape[-1], rate))


def resample(waves: np.ndarray, source_rate: int, rate: int) -> np.ndarray:
    """Resample waveforms (..., n) to float64 (..., ceil(n * rate / source_rate)), by
    `scipy.signal.resample_poly`."""
    if source_rate == rate:
        return waves
    from scipy.signal import resample_poly

    common = math.gcd(source_rate, rate)
    return resample_poly(waves.astype(np.float64), rate // common, source_rate // common, axis=-1)


# Any: a `Dataset` that has `wave`, which its protocol does not declare.
def read_waves(dataset: Any, indices: np.ndarray, rate: int) -> Tensor:
    """Return the waveforms at data set indices, float32 (n, 1, samples)."""
    import torch

    waves = np.stack([dataset.wave(int(index), rate) for index in indices])
    return torch.from_numpy(waves[:, None].astype(np.float32))


def log_mels(waves: Tensor, rate: int, frames: int) -> Tensor:
    """Convert waveforms (B, 1, n) at a rate to log-mel spectrograms float32 (B, bands, frames) in [-1, 1].

    Only the first `frames` frames are kept; shorter waveforms are padded with silence.
    """
    import torch

    from harness.data.open import from_pixels

    x = resample(waves[:, 0].double().cpu().numpy(), rate, RATE)[:, : frames * HOP]
    x = np.pad(x, ((0, 0), (0, frames * HOP - x.shape[1])))
    return from_pixels(mel_bytes(x)).to(waves.device, torch.float32)
