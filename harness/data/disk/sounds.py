"""Recordings on disk: a folder of files, one subfolder per class, or parquet with a column of encoded
recordings."""

from __future__ import annotations

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.disk.media import MediaClips, media_index, unusable
from harness.data.generated.moving_digits import clip_length
from harness.data.generated.tones import FRAMES
from harness.data.log_mel import BANDS, HOP, RATE, mel_bytes
from harness.data.stored import Stored, spread
from harness.data.waveforms import wave_length
from harness.errors import UserError
from metrics.files.media import AUDIO, Encoded
from metrics.files.recordings import Recording, decoded, resampled
from metrics.value import MetricError


class Sounds(MediaClips):
    """Recordings in files or parquet, as log-mel spectrograms of 32 bands and 64 frames: windows of 1.024 s.

    `data.frames` sets another length. Stereo is averaged and resampled to 8 kHz; loudness is not changed. A
    recording yields one sample per complete window. A shorter recording is padded with silence. Audio after
    the last complete window is dropped.

    A recording is rejected by name if it cannot be decoded, is a truncated WAV, AIFF or FLAC, is empty or
    silent, or has values that are not finite. More than two channels are rejected too, because there is more
    than one way to mix them.
    """

    modality = "audio"
    reads = ("root", "image_key", "label_key", "frames")

    def __init__(self, spec: DataSpec) -> None:
        frames = clip_length(spec, FRAMES)
        on = media_index(spec, AUDIO, survey_recording)
        super().__init__(on, [max(1, length // (frames * HOP)) for _, length, _ in on.surveys])
        self.shape = (BANDS, frames)
        self.stored = Stored(sampling_rates=spread(rate for *_, rate in on.surveys))

    def _clip(self, index: int) -> np.ndarray:
        return mel_bytes(self.wave(index))

    def wave(self, index: int, rate: int = RATE) -> np.ndarray:
        """Return the waveform of a window, float64 (samples,) at a rate.

        It has frames * HOP samples at 8 kHz. Other rates are resampled directly from the recording on disk.
        """
        item, clip = self._clips[index]
        file, length = self._index.items[item], wave_length(self.shape[1], rate)
        begin = round(clip * self.shape[1] * HOP * rate / RATE)
        samples = waveform(Encoded(file.where, file.read()), rate)[begin : begin + length]
        return np.pad(samples, (0, length - len(samples))).astype(np.float64)


def survey_recording(file: Encoded) -> tuple[int, int]:
    """Return the number of samples at 8 kHz, and the sampling rate of the file.

    Raises `UserError` naming a recording that cannot be used.
    """
    stored = recording(file)
    return len(at_rate(stored, RATE)), stored.rate


def waveform(file: Encoded, output_rate: int = RATE) -> np.ndarray:
    """Return a recording as float32 (n,) at a rate. Raises `UserError` naming one that cannot be used."""
    return at_rate(recording(file), output_rate)


def recording(file: Encoded) -> Recording:
    """Return a recording at its original rate. Raises `UserError` naming one that cannot be used."""
    try:
        found = decoded(file)
    except MetricError as error:
        raise unusable(error) from error
    if found.silent:
        raise UserError(f"{file.name} is silent: all its samples are equal; replace or remove it")
    return found


def at_rate(found: Recording, rate: int) -> np.ndarray:
    """Return a recording as float32 (n,) at a rate. Raises `UserError` for one that is too long."""
    try:
        return resampled(found, rate).samples
    except MetricError as error:
        raise unusable(error) from error
