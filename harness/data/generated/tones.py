"""Generated sounds of 1.024 s, whose classes combine a pitch contour and a timbre."""

from __future__ import annotations

import hashlib

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.dataset import Sample
from harness.data.generated.moving_digits import clip_length
from harness.data.log_mel import BANDS, HOP, RATE, mels_of
from harness.data.waveforms import resample
from harness.runtime.random_streams import Streams

CONTOURS = ("level", "rising", "falling", "arch")
TIMBRES = ("sine", "harmonics", "noise")
FRAMES, EACH = 64, 200
PITCH = (300.0, 700.0)
"""Limits in Hz of the middle pitch of a sound, uniform in octaves; contours span one octave around it."""
LENGTH = (0.4, 0.9)
"""Limits of the fraction of the recording that a sound fills, at a random position."""
PEAK, EDGE = 0.5, 160
"""Amplitude, and samples (20 ms) of the raised-cosine fade at both ends."""
HARMONICS, BANDWIDTH = 5, 40
"""Number of harmonics, with amplitudes 1/k; samples (5 ms) over which white noise is averaged before it
modulates a sine."""


class Tones:
    """Tones: log-mel spectrograms of 32 bands and 64 frames (`data.frames` for another length), 12 classes.

    There are 2,400 samples, (32, frames); the class is `len(TIMBRES) * contour + timbre`. `wave(index)` is
    the sound itself; `harness.data.log_mel.griffin_lim` reconstructs one from a sample.
    """

    modality = "audio"
    reads = ("frames",)
    classes = len(CONTOURS) * len(TIMBRES)

    def __init__(self, spec: DataSpec) -> None:
        self._streams, frames = Streams(0), clip_length(spec, FRAMES)
        self.shape = (BANDS, frames)
        self._mels = mels_of(self.wave, len(self))
        self.fingerprint = hashlib.sha256(self._mels.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return EACH * self.classes

    def sample(self, index: int) -> Sample:
        return Sample(self._mels[index], index % self.classes)

    def key(self, index: int) -> bytes:
        return self._mels[index].tobytes()

    def wave(self, index: int, rate: int = RATE) -> np.ndarray:
        """Return the sound, float64 (frames * HOP,) at 8 kHz within -PEAK .. PEAK, or resampled to another
        rate."""
        contour, timbre = divmod(index % self.classes, len(TIMBRES))
        pitch, duration, place = self._streams.uniform("data/tones", [index], (3,))[0].double().tolist()
        total = self.shape[1] * HOP
        length = int(total * (LENGTH[0] + (LENGTH[1] - LENGTH[0]) * duration))
        middle = PITCH[0] * (PITCH[1] / PITCH[0]) ** pitch
        hertz = middle * 2 ** _octaves(CONTOURS[contour], np.arange(length) / length)
        sound = self._sound(TIMBRES[timbre], hertz, index)
        wave, begin = np.zeros(total), int(place * (total - length))
        wave[begin : begin + length] = PEAK / np.abs(sound).max() * sound * _edges(length)
        return resample(wave, RATE, rate)

    def _sound(self, timbre: str, hertz: np.ndarray, index: int) -> np.ndarray:
        phase = 2 * np.pi * np.cumsum(hertz) / RATE
        if timbre == "sine":
            return np.sin(phase)
        if timbre == "harmonics":
            return sum((np.sin(k * phase) / k for k in range(1, HARMONICS + 1)), np.zeros(len(phase)))
        white = self._streams.normal("data/tones/noise", [index], (len(hertz) + BANDWIDTH - 1,))[0].numpy()
        return np.sin(phase) * np.convolve(white.astype(np.float64), np.ones(BANDWIDTH), "valid")


def _octaves(contour: str, u: np.ndarray) -> np.ndarray:
    """Return octaves above the middle pitch at fractions u (n,) of the length of a sound."""
    octaves = {"level": 0 * u, "rising": u - 0.5, "falling": 0.5 - u, "arch": 4 * u * (1 - u) - 0.5}
    return octaves[contour]


def _edges(length: int) -> np.ndarray:
    """Return the raised-cosine envelope (length,)."""
    ends = np.minimum(np.arange(length), np.arange(length)[::-1]) / EDGE
    return 0.5 - 0.5 * np.cos(np.pi * np.minimum(ends, 1))
