"""scikit-learn's digits falling, bouncing off the floor, and clicking at each impact: 3,594 videos with their
sound."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from harness.config.spec import DataSpec
from harness.data.dataset import Sample
from harness.data.generated.digits import Digits
from harness.data.generated.moving_digits import (
    CLIPS_EACH,
    FRAMES,
    ROOM,
    SIDE,
    clip_length,
    digit_images,
    placed,
    reflected,
)
from harness.data.log_mel import BANDS, HOP, PER_FRAME, RATE, mel_bytes
from harness.runtime.random_streams import Streams

LOWEST = 3.0
"""Pixels of the smallest bounce; the highest is ROOM."""
LONGEST = 8.0
"""Frames between the impacts of a bounce of ROOM; one of height h takes sqrt(h / ROOM) of it: gravity is one
for all."""
DRIFT = 0.75
"""Largest speed sideways, pixels a frame."""
SAMPLES = HOP * PER_FRAME
"""Of sound in one frame of video: 64 ms, 15.625 frames a second."""
PEAK, DECAY, PITCH = 0.8, 0.012, (500.0, 5.0)
"""Of a click: amplitude, seconds to 1/e, and pitch in Hz of digit 0 with digits an octave."""
CLICK = int(12 * DECAY * RATE)
"""Samples: 100 dB down."""


class Bounce:
    """Bounce: a bouncing digit's video (1, 16, 16, 16) and its log-mel sound (32, 64), ten classes.

    `data.frames` sets another length. A sample is both parts flattened, the video first. Impacts come
    `LONGEST * sqrt(h / ROOM)` frames apart, h even in LOWEST .. ROOM; nothing is lost at an impact. Frame k
    shows the moment of sample (k + 1/2) * SAMPLES. A click is a decaying sine whose pitch tells the digit.
    """

    modality = "joint"
    reads = ("frames",)
    classes = 10
    sound_frames = PER_FRAME
    """Of sound in one frame of video, whose impacts are heard as clicks."""

    def __init__(self, spec: DataSpec) -> None:
        self._digits, frames = Digits(spec), clip_length(spec, FRAMES)
        self.shape, self.beside = (1, frames, SIDE, SIDE), ((BANDS, PER_FRAME * frames),)
        drawn = Streams(0).uniform("data/bounce", range(len(self)), (4,)).numpy().astype(np.float64)
        height = LOWEST + (ROOM - LOWEST) * drawn[:, 0]
        self.period = LONGEST * np.sqrt(height / ROOM)
        self.first = drawn[:, 1] * self.period
        times = np.arange(frames)
        across, _ = reflected(drawn[:, 2:3] * ROOM, (2 * drawn[:, 3:4] - 1) * DRIFT, times)
        above = fallen(height, self.period, self.first, times)
        self.position = np.stack([ROOM - above, across[..., 0]], -1)
        self._pixels = placed(digit_images(self._digits, len(self)), self.position)
        self._mels = np.stack([mel_bytes(self.wave(index)) for index in range(len(self))])
        content = hashlib.sha256(self._pixels.tobytes() + self._mels.tobytes())
        self.fingerprint = content.hexdigest()[:16]

    position: np.ndarray
    """(videos, frames, 2): row and column of the digit's upper left corner in pixels; row ROOM is the
    floor."""
    period: np.ndarray
    """(videos,): frames from one impact to the next."""
    first: np.ndarray
    """(videos,): frames from frame 0 to the first impact after it."""

    def __len__(self) -> int:
        return CLIPS_EACH * len(self._digits)

    def sample(self, index: int) -> Sample:
        both = np.concatenate([self._pixels[index].ravel(), self._mels[index].ravel()])
        return Sample(both, self._digits.sample(index % len(self._digits)).label)

    def key(self, index: int) -> bytes:
        return self._digits.key(index % len(self._digits))

    def impacts(self, index: int) -> np.ndarray:
        """Times in frames of every impact from half a frame before the first frame to half a frame after the
        last."""
        first, period, last = self.first[index], self.period[index], self.shape[1] - 0.5
        times = first + period * np.arange(-1, int(last / period) + 2)
        return times[(times >= -0.5) & (times < last)]

    def wave(self, index: int) -> np.ndarray:
        """float64 (frames * SAMPLES,) at 8 kHz."""
        base, octave = PITCH
        hertz = base * 2 ** (self._digits.sample(index % len(self._digits)).label / octave)
        wave = np.zeros(self.shape[1] * SAMPLES)
        for struck in (self.impacts(index) + 0.5) * SAMPLES:
            begin = math.ceil(struck)
            heard = wave[begin : begin + CLICK]
            seconds = (np.arange(begin, begin + len(heard)) - struck) / RATE
            heard += PEAK * np.exp(-seconds / DECAY) * np.sin(2 * np.pi * hertz * seconds)
        return wave


def fallen(height: np.ndarray, period: np.ndarray, first: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Height above the floor (N, T) of bounces (N,) at `times` (T,): parabolas between impacts, h at their
    tops."""
    phase = np.mod((times - first[:, None]) / period[:, None], 1)
    return height[:, None] * 4 * phase * (1 - phase)
