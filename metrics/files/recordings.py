"""Recordings from files or parquet rows: decoding, mixing to mono, resampling and dither.

soundfile decodes the formats it supports (wav, flac, ogg, mp3, aiff), and PyAV the others (m4a, webm, ...).
Channels are averaged, and scipy's polyphase filter changes the rate. Dither is white Gaussian noise far below
the level of speech and music. Without it, digital silence on one side only would dominate a log-mel distance.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from metrics.files.containers import MOST_VALUES, container, sounds_of
from metrics.files.media import AUDIO, Encoded, encoded, holds, package
from metrics.value import MetricError

LENGTHS: dict[bytes, tuple[slice, Literal["little", "big"], int]] = {
    b"RIFF": (slice(4, 8), "little", 8),
    b"RF64": (slice(20, 28), "little", 8),
    b"riff": (slice(16, 24), "little", 0),
    b"FORM": (slice(4, 8), "big", 8),
}
"""Position and byte order of the length field of WAV, RF64, W64 and AIFF files, and the number of bytes that
it does not count."""
STREAMED = 2**32 - 2**16
"""A length in bytes above this is a placeholder of a file that was written to a pipe."""
MOST_CHANNELS = 2
FASTEST = 768_000
"""Highest sampling rate in Hz; more indicates a damaged header."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One channel of sound, float32 (n,), full scale at 1.

    Raises `MetricError`, naming the recording, for samples of another type or shape, none, or non-finite
    ones.
    """

    name: str
    rate: int
    """Samples per second."""
    samples: np.ndarray

    def __post_init__(self) -> None:
        x = self.samples
        if x.ndim != 1 or x.dtype != np.float32 or self.rate < 1:
            raise MetricError(
                f"{self.name}: samples are {x.dtype} of shape {x.shape} at {self.rate} Hz; "
                "expected float32 (n,) at 1 Hz or more"
            )
        if not len(x):
            raise MetricError(f"{self.name} holds no samples")
        broken = np.flatnonzero(~np.isfinite(x))
        if len(broken):
            raise MetricError(
                f"{self.name} is not finite in {len(broken)} of {len(x)} samples; "
                f"the first is sample {broken[0]}"
            )

    @property
    def silent(self) -> bool:
        """True if all samples have the same value."""
        return float(np.ptp(self.samples)) == 0.0


def is_audio(path: str | Path) -> bool:
    """Return True if `read_audio` reads the path: audio files, or parquet with a column `audio`."""
    return holds(Path(path), AUDIO)


def read_audio(path: str | Path, rate: int, *, silence: str = "refuse") -> Iterator[Recording]:
    """Yield the recordings of a folder, a file or a parquet file, in the order of their names, at `rate` Hz.

    Raises `MetricError`, naming the file, if a recording cannot be decoded, is empty, holds NaN or infinity,
    or is silent. With `silence="keep"` silent ones are accepted; they must be measured with dither.
    """
    if rate < 1 or silence not in ("refuse", "keep"):
        raise MetricError(
            f"rate={rate}, silence='{silence}'; expected a rate of 1 or more, and silence 'refuse' or 'keep'"
        )
    for file in encoded(Path(path), AUDIO):
        recording = decoded(file)
        if recording.silent and silence == "refuse":
            raise MetricError(
                f"{file.name} is silent: its {len(recording.samples)} samples are all "
                f"{recording.samples[0]:g}; remove it, or use silence='keep' and an extractor with dither"
            )
        yield resampled(recording, rate)


def decoded(file: Encoded) -> Recording:
    """Return a complete recording at its original rate, with its channels averaged.

    Raises `MetricError`, naming the file, if it cannot be decoded, is cut short, has an impossible rate, or
    has more than two channels, because there is more than one way to mix them.
    """
    _check_length(file)
    channels, rate = decoded_channels(file)
    _check_flac(file, len(channels))
    if not 0 < rate <= FASTEST:
        raise MetricError(
            f"{file.name} has a sampling rate of {rate} Hz, expected 1 to {FASTEST}; replace or remove it"
        )
    if channels.shape[1] > MOST_CHANNELS:
        raise MetricError(
            f"{file.name} has {channels.shape[1]} channels, expected at most {MOST_CHANNELS}; mix it down to "
            "stereo or mono"
        )
    return Recording(file.name, rate, channels.mean(axis=1, dtype=np.float64).astype(np.float32))


def decoded_channels(file: Encoded) -> tuple[np.ndarray, int]:
    """Return the samples float32 (n, channels) and their rate.

    Raises `MetricError`, naming the file, if it cannot be decoded.
    """
    return _by_soundfile(file) or _by_av(file)


def _check_length(file: Encoded) -> None:
    """Raise `MetricError` for a file that is shorter than its header declares."""
    content = file.content
    if content[:4] not in LENGTHS:
        return
    place, order, uncounted = LENGTHS[content[:4]]
    declared = int.from_bytes(content[place], order) + uncounted
    if len(content) < declared <= STREAMED:
        raise MetricError(
            f"{file.name} is cut short: {len(content)} bytes of {declared}; replace or remove it"
        )


def _check_flac(file: Encoded, samples: int) -> None:
    """Raise `MetricError` for a FLAC with fewer samples than its header declares.

    The total is 36 bits of STREAMINFO (RFC 9639, 8.2); 0 means unknown.
    """
    header = file.content[:26]
    declared = int.from_bytes(header[21:26], "big") % 2**36
    if header[:4] == b"fLaC" and samples < declared:
        raise MetricError(f"{file.name} is cut short: {samples} samples of {declared}; replace or remove it")


def resampled(recording: Recording, rate: int) -> Recording:
    """Return the recording at another rate, with ceil(n * rate / recording.rate) samples.

    It uses `scipy.signal.resample_poly` in float64. Raises `MetricError` for more samples than a bound.
    """
    if recording.rate == rate:
        return recording
    from scipy.signal import resample_poly

    common = math.gcd(recording.rate, rate)
    samples = math.ceil(len(recording.samples) * rate / recording.rate)
    if samples > MOST_VALUES:
        raise MetricError(
            f"{recording.name} has a sampling rate of {recording.rate} Hz, which is {samples:,} samples at "
            f"{rate} Hz, and at most {MOST_VALUES:,} are read; correct the rate, or cut it into shorter ones"
        )
    x = resample_poly(recording.samples.astype(np.float64), rate // common, recording.rate // common)
    return Recording(recording.name, rate, x.astype(np.float32))


def dithered(samples: np.ndarray, dbfs: float, seed: int = 0) -> np.ndarray:
    """Return samples float32 (n,) plus white Gaussian noise with a root mean square of 10 ** (dbfs / 20).

    The noise is a pure function of the seed and the samples: it does not depend on the order of recordings,
    and equal recordings remain equal.
    """
    key = hashlib.blake2b(samples.tobytes(), digest_size=16, key=seed.to_bytes(8, "little")).digest()
    noise = np.random.default_rng(int.from_bytes(key, "little")).standard_normal(len(samples))
    return (samples + 10 ** (dbfs / 20) * noise).astype(np.float32)


def declared_rate(file: Encoded) -> int | None:
    """Return the sampling rate that a file states, without decoding it."""
    soundfile = package("soundfile", "audio")
    try:
        with soundfile.SoundFile(_source(file)) as sound:
            return sound.samplerate
    except (soundfile.LibsndfileError, OSError, ValueError):
        with container(file, AUDIO) as opened:
            audio = opened.streams.audio
            return audio[0].rate if audio and audio[0].codec_context else None


def _source(file: Encoded) -> io.BytesIO | str:
    return io.BytesIO(file.source) if isinstance(file.source, bytes) else str(file.source)


def _by_soundfile(file: Encoded) -> tuple[np.ndarray, int] | None:
    """Return samples (n, channels) and rate, or None if soundfile cannot read the file.

    The reason may be an unknown format, or a header with no or too large a number of samples: soundfile
    allocates memory for that number before it reads.
    """
    soundfile = package("soundfile", "audio")
    try:
        with soundfile.SoundFile(_source(file)) as sound:
            # A number that is too large may only be a placeholder: PyAV counts.
            if sound.frames * sound.channels > MOST_VALUES:
                return None
            return sound.read(dtype="float32", always_2d=True), sound.samplerate
    except (soundfile.LibsndfileError, MemoryError, ValueError):
        return None


def _by_av(file: Encoded) -> tuple[np.ndarray, int]:
    """Return samples (n, channels) and rate, decoded by PyAV."""
    av = package("av", "audio")
    with container(file, AUDIO) as opened:
        planar = av.AudioResampler(format="fltp")
        parts = [p.to_ndarray() for f in sounds_of(opened, file) for p in planar.resample(f)]
        rate = opened.streams.audio[0].rate
    if not parts:
        raise MetricError(f"{file.name} holds no samples")
    return np.concatenate(parts, axis=1).T, rate
