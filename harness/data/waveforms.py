"""The waves behind a data set of sound, at the rate that a codec reads, and the log-mel pictures of decoded
ones.

A data set with waves has `wave(index, rate)`, float64 (samples,) in [-1, 1]: as long as its log-mel picture.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.log_mel import HOP, RATE, mel_bytes

if TYPE_CHECKING:
    from torch import Tensor


def wave_length(frames: int, rate: int) -> int:
    """Samples at a rate of as many log-mel frames; the last one may be begun."""
    return math.ceil(frames * HOP * rate / RATE)


def read_shape(shape: tuple[int, ...], rate: int | None) -> tuple[int, ...]:
    """What a codec reads of samples with a shape: themselves, or at a rate the wave, (1, samples), behind
    (bands, frames)."""
    return shape if rate is None else (1, wave_length(shape[-1], rate))


def at_rate(waves: np.ndarray, own: int, rate: int) -> np.ndarray:
    """Waves (..., n) at another rate, float64 (..., ceil(n * rate / own)): `scipy.signal.resample_poly`."""
    if own == rate:
        return waves
    from scipy.signal import resample_poly

    common = math.gcd(own, rate)
    return resample_poly(waves.astype(np.float64), rate // common, own // common, axis=-1)


def waves(dataset: Any, indices: np.ndarray, rate: int) -> Tensor:
    """Of a data set's samples, float32 (n, 1, samples)."""
    import torch

    found = np.stack([dataset.wave(int(index), rate) for index in indices])
    return torch.from_numpy(found[:, None].astype(np.float32))


def as_mels(heard: Tensor, rate: int, frames: int) -> Tensor:
    """Waves (B, 1, n) at a rate -> log-mel pictures float32 (B, bands, frames) in [-1, 1]: their first
    `frames`, silence where they end earlier."""
    import torch

    from harness.data.open import from_pixels

    x = at_rate(heard[:, 0].double().cpu().numpy(), rate, RATE)[:, : frames * HOP]
    x = np.pad(x, ((0, 0), (0, frames * HOP - x.shape[1])))
    return from_pixels(mel_bytes(x)).to(heard.device, torch.float32)
