"""Videos with sound of scikit-learn's digits that fall, bounce off the floor and click at each impact.

With `data.caption_key`, which a run with a text encoder sets, every clip has captions, and the fingerprint
covers them.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.dataset import Sample
from harness.data.generated.bounce_captions import STATES, Bounces, bounces, described
from harness.data.generated.captioned import caption_bytes, some_of, wants_captions
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
from harness.data.log_mel import BANDS, PER_FRAME, RATE, SAMPLES_PER_FRAME, mels_of
from harness.runtime.random_streams import Streams

LOWEST = 3.0
"""Height of the lowest bounce in pixels; the highest is ROOM."""
LONGEST = 8.0
"""Frames between the impacts of a bounce of height ROOM. Gravity is the same for all, so a bounce of height h
takes sqrt(h / ROOM) times that."""
DRIFT = 0.75
"""Highest horizontal speed in pixels per frame."""
PEAK, DECAY, PITCH = 0.8, 0.012, (500.0, 5.0)
"""Amplitude of a click, seconds to 1/e, and (Hz of digit 0, digits per octave)."""
CLICK = int(12 * DECAY * RATE)
"""Length of a click in samples, until it has decayed by 100 dB."""


class Bounce:
    """Bounce: a bouncing digit's video (1, 16, 16, 16) and its log-mel sound (32, 64), ten classes.

    There are 3,594 samples; `data.frames` sets another length. A sample is both parts flattened, the video
    first. Impacts follow each other every `LONGEST * sqrt(h / ROOM)` frames, with h uniform in LOWEST ..
    ROOM. No energy is lost at an impact. Frame k shows the time of audio sample (k + 1/2) * n, with n samples
    in a frame. A click is a decaying sine whose pitch depends on the digit. `truth(index)` has digit, number
    of impacts and tempo, and the one to three captions of a clip state them, the most detailed one first.
    """

    modality = "joint"
    reads = ("frames", "caption_key")
    classes = 10
    states = STATES
    caption_source = "generated"
    sound_frames = PER_FRAME
    """Log-mel frames for each frame of video, for metrics that match clicks with impacts."""

    def __init__(self, spec: DataSpec) -> None:
        captioned = wants_captions(spec)
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
        self._mels = mels_of(self.wave, len(self))
        content = hashlib.sha256(self._pixels.tobytes() + self._mels.tobytes())
        if captioned:
            texts = some_of([described(self.truth(i)) for i in range(len(self))], "data/bounce/captions")
            self.captions = texts.__getitem__
            content.update(caption_bytes(texts))
        self.fingerprint = content.hexdigest()[:16]

    position: np.ndarray
    """Row and column of the digit's upper left corner in pixels, (videos, frames, 2); row ROOM is the
    floor."""
    period: np.ndarray
    """Frames from one impact to the next, (videos,)."""
    first: np.ndarray
    """Frames from frame 0 to the first impact after it, (videos,)."""

    def __len__(self) -> int:
        return CLIPS_EACH * len(self._digits)

    def sample(self, index: int) -> Sample:
        x = np.concatenate([self._pixels[index].ravel(), self._mels[index].ravel()])
        return Sample(x, self._digits.sample(index % len(self._digits)).label)

    def key(self, index: int) -> bytes:
        return self._digits.key(index % len(self._digits))

    def truth(self, index: int) -> Bounces:
        label = self._digits.sample(index % len(self._digits)).label
        return bounces(label, float(self.first[index]), float(self.period[index]), self.shape[1])

    def caption_attributes(self, index: int) -> tuple[str, ...]:
        """Return the tempo that the captions of a clip state, if they do."""
        tempo = self.truth(index).tempo
        return (tempo,) if tempo else ()

    def impacts(self, index: int) -> np.ndarray:
        """Return the times, in frames, of every impact from half a frame before the first frame to half a
        frame after the last."""
        first, period, last = self.first[index], self.period[index], self.shape[1] - 0.5
        times = first + period * np.arange(-1, int(last / period) + 2)
        return times[(times >= -0.5) & (times < last)]

    def wave(self, index: int) -> np.ndarray:
        """Return the sound, float64 (frames * SAMPLES_PER_FRAME,) at 8 kHz."""
        base, octave = PITCH
        hertz = base * 2 ** (self._digits.sample(index % len(self._digits)).label / octave)
        wave = np.zeros(self.shape[1] * SAMPLES_PER_FRAME)
        for impact in (self.impacts(index) + 0.5) * SAMPLES_PER_FRAME:
            begin = math.ceil(impact)
            click = wave[begin : begin + CLICK]
            seconds = (np.arange(begin, begin + len(click)) - impact) / RATE
            click += PEAK * np.exp(-seconds / DECAY) * np.sin(2 * np.pi * hertz * seconds)
        return wave


def fallen(height: np.ndarray, period: np.ndarray, first: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return heights above the floor (N, T) of bounces (N,) at `times` (T,): parabolas between impacts whose
    peaks are `height`."""
    phase = np.mod((times - first[:, None]) / period[:, None], 1)
    return height[:, None] * 4 * phase * (1 - phase)
