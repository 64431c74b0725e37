"""Recordings on disk: a folder of files, one subfolder a class, or parquet with a column of encoded
recordings."""

from __future__ import annotations

from typing import Literal

import numpy as np

from harness.config.spec import DataSpec
from harness.data.dataset import Sample
from harness.data.disk.folder import Kind
from harness.data.disk.media import Clips, Memory, media_index
from harness.data.generated.moving_digits import clip_length
from harness.data.generated.tones import FRAMES
from harness.data.log_mel import BANDS, HOP, RATE, mel_bytes
from harness.data.waveforms import wave_length
from harness.errors import UserError
from metrics.files.media import AUDIO, Encoded
from metrics.files.recordings import Recording, decoded_channels, resampled
from metrics.value import MetricError

KIND = Kind(
    "recordings",
    tuple(sorted(AUDIO.suffixes)),
    (".wma", ".amr", ".au", ".snd", ".caf", ".ac3", ".mid", ".midi", ".ape", ".wv", ".ra", ".3gp", ".webm", ".mka"),
    "WAV",
)  # fmt: skip
LENGTHS: dict[bytes, tuple[slice, Literal["little", "big"], int]] = {
    b"RIFF": (slice(4, 8), "little", 8),
    b"RF64": (slice(20, 28), "little", 8),
    b"riff": (slice(16, 24), "little", 0),
    b"FORM": (slice(4, 8), "big", 8),
}
"""Where a WAV, a long WAV, a W64 and an AIFF say their length, in which order of bytes, and how many they
leave out."""
STREAMED = 2**32 - 2**16
"""Bytes beyond which a length stands for none: the file was written into a pipe."""
MOST_CHANNELS = 2
FASTEST = 768_000
"""Samples a second: more is a damaged header."""


class Sounds:
    """Recordings in files or parquet, as log-mel pictures of 32 bands and 64 frames: windows of 1.024 s.

    `data.frames` sets another length. Stereo is averaged, the rate is brought to 8 kHz, and loudness stays as
    it is. A recording gives one sample for each whole window in it; one that is shorter than a window gives
    one, with silence after it. Samples after the last whole window are left out. Refused, by name: what
    cannot be decoded, a WAV, AIFF or FLAC that is cut short, what holds no samples or no sound, has values
    that are not finite, or more than two channels (their mix is a choice to be made first).
    """

    modality = "audio"
    reads = ("root", "image_key", "label_key", "frames")

    def __init__(self, spec: DataSpec) -> None:
        frames = clip_length(spec, FRAMES)
        self._index = on = media_index(spec, KIND, look)
        self.classes, self.class_names, self.shape = on.classes, on.class_names, (BANDS, frames)
        self._clips = Clips([max(1, length // (frames * HOP)) for _, length in on.seen])
        self._memory, self.fingerprint = Memory(), on.fingerprint()

    def __len__(self) -> int:
        return len(self._clips)

    def sample(self, index: int) -> Sample:
        x = self._memory.get(index, lambda index: mel_bytes(self.wave(index)))
        return Sample(x, self.label(index))

    def label(self, index: int) -> int:
        return self._index.labels[self._clips[index][0]]

    def key(self, index: int) -> bytes:
        """All windows of a recording fall on one side of the split."""
        return self._index.key(self._clips[index][0])

    def wave(self, index: int, rate: int = RATE) -> np.ndarray:
        """float64 (frames * HOP,) at 8 kHz; at another rate so many times longer, from the recording as it is
        on disk."""
        item, clip = self._clips[index]
        file, length = self._index.items[item], wave_length(self.shape[1], rate)
        begin = round(clip * self.shape[1] * HOP * rate / RATE)
        samples = waveform(Encoded(file.where, file.read()), rate)[begin : begin + length]
        return np.pad(samples, (0, length - len(samples))).astype(np.float64)


def look(file: Encoded) -> tuple[int]:
    """Samples at 8 kHz of a recording that keeps the rules; raises `UserError` naming it where it does
    not."""
    if file.content[:4] in LENGTHS:
        place, order, left_out = LENGTHS[file.content[:4]]
        promised = int.from_bytes(file.content[place], order) + left_out
        if len(file.content) < promised <= STREAMED:
            raise UserError(
                f"{file.name} is cut short: {len(file.content)} bytes of {promised}; replace or remove it"
            )
    return (len(waveform(file)),)


def waveform(file: Encoded, at: int = RATE) -> np.ndarray:
    """float32 (n,) at 8 kHz, or another rate; raises `UserError` naming a recording that breaks a rule."""
    try:
        channels, rate = decoded_channels(file)
        _check_flac(file, len(channels))
        if not 0 < rate <= FASTEST:
            raise UserError(f"{file.name} says {rate} samples a second; replace or remove it")
        if channels.shape[1] > MOST_CHANNELS:
            raise UserError(
                f"{file.name} has {channels.shape[1]} channels; at most {MOST_CHANNELS} are mixed here: mix it down first"
            )
        recording = Recording(file.name, rate, channels.mean(axis=1, dtype=np.float64).astype(np.float32))
    except MetricError as error:
        raise UserError(f"{error}; replace or remove it") from error
    if recording.silent:
        raise UserError(f"{file.name} is silent: all its samples have one value; replace or remove it")
    return resampled(recording, at).samples


def _check_flac(file: Encoded, samples: int) -> None:
    """Raise `UserError` for a FLAC of fewer samples than its header says, where it says how many: 36 bits of
    its STREAMINFO (RFC 9639, 8.2)."""
    promised = int.from_bytes(file.content[21:26], "big") % 2**36
    if file.content[:4] == b"fLaC" and samples < promised:
        raise UserError(f"{file.name} is cut short: {samples} samples of {promised}; replace or remove it")
