"""Recordings at the border: files or parquet rows in, one channel at the rate that is asked for out.

soundfile reads what it can (wav, flac, ogg, mp3, aiff), PyAV the rest (m4a, webm, ...). Channels are
averaged, and the rate is changed by scipy's polyphase filter. Dither is white Gaussian noise of a level far
below speech and music: without it digital silence, which only one side may have, outweighs everything else in
a log-mel distance.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metrics.files.media import AUDIO, Encoded, encoded, holds, package
from metrics.value import MetricError


@dataclass(frozen=True, eq=False)
class Recording:
    """One channel of sound, float32 (n,), full scale at 1. Raises `MetricError` for anything else, by its
    name."""

    name: str
    rate: int
    """Samples a second."""
    samples: np.ndarray

    def __post_init__(self) -> None:
        x = self.samples
        if x.ndim != 1 or x.dtype != np.float32 or self.rate < 1:
            raise MetricError(
                f"{self.name}: samples are {x.dtype} of shape {x.shape} at {self.rate} Hz; expected float32 (n,)"
            )
        if not len(x):
            raise MetricError(f"{self.name} holds no samples")
        broken = np.flatnonzero(~np.isfinite(x))
        if len(broken):
            raise MetricError(
                f"{self.name} is not finite in {len(broken)} of {len(x)} samples, sample {broken[0]} the first"
            )

    @property
    def silent(self) -> bool:
        """Whether all samples are one value."""
        return float(np.ptp(self.samples)) == 0.0


def is_audio(path: str | Path) -> bool:
    """Whether `read_audio` reads it: recordings in files, or in parquet with a column `audio`."""
    return holds(Path(path), AUDIO)


def read_audio(path: str | Path, rate: int, *, silence: str = "refuse") -> Iterator[Recording]:
    """All recordings of a folder, a file or a parquet file, in the order of their names, at `rate` samples a
    second.

    Raises `MetricError`, which names the file, for one that cannot be decoded, is empty, holds NaN or
    infinity, or is silent (`silence="keep"` takes it: then measure with dither).
    """
    if rate < 1 or silence not in ("refuse", "keep"):
        raise MetricError(
            f"rate={rate}, silence='{silence}': expected a rate above 0, and silence refuse or keep"
        )
    for file in encoded(Path(path), AUDIO):
        recording = decoded(file)
        if recording.silent and silence == "refuse":
            raise MetricError(
                f"{file.name} is silent: its {len(recording.samples)} samples are all {recording.samples[0]:g}; "
                "leave it out, or keep silence and measure with dither"
            )
        yield resampled(recording, rate)


def decoded(file: Encoded) -> Recording:
    """A recording at its own rate, its channels averaged."""
    channels, rate = decoded_channels(file)
    return Recording(file.name, rate, channels.mean(axis=1, dtype=np.float64).astype(np.float32))


def decoded_channels(file: Encoded) -> tuple[np.ndarray, int]:
    """Samples float32 (n, channels) and their rate; raises `MetricError`, naming the file, where it cannot be
    decoded."""
    return _by_soundfile(file) or _by_av(file)


def resampled(recording: Recording, rate: int) -> Recording:
    """The recording at another rate: `scipy.signal.resample_poly` in float64, ceil(n * rate / own rate)
    samples."""
    if recording.rate == rate:
        return recording
    from scipy.signal import resample_poly

    common = math.gcd(recording.rate, rate)
    x = resample_poly(recording.samples.astype(np.float64), rate // common, recording.rate // common)
    return Recording(recording.name, rate, x.astype(np.float32))


def dithered(samples: np.ndarray, dbfs: float, seed: int = 0) -> np.ndarray:
    """`samples` float32 (n,) plus white Gaussian noise of root mean square 10 ** (dbfs / 20).

    The noise is a pure function of the seed and of the samples: it depends on no order, and equal recordings
    stay equal.
    """
    key = hashlib.blake2b(samples.tobytes(), digest_size=16, key=seed.to_bytes(8, "little")).digest()
    noise = np.random.default_rng(int.from_bytes(key, "little")).standard_normal(len(samples))
    return (samples + 10 ** (dbfs / 20) * noise).astype(np.float32)


def _by_soundfile(file: Encoded) -> tuple[np.ndarray, int] | None:
    """Samples (n, channels) and rate; None where the format is unknown to it, or the header does not say how
    many samples there are, or more than fit into memory: soundfile makes room for all before it reads."""
    soundfile = package("soundfile", "audio")
    source = io.BytesIO(file.source) if isinstance(file.source, bytes) else str(file.source)
    try:
        return soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, MemoryError, ValueError):
        return None


def _by_av(file: Encoded) -> tuple[np.ndarray, int]:
    av = package("av", "audio")
    source = io.BytesIO(file.source) if isinstance(file.source, bytes) else str(file.source)
    try:
        with av.open(source, metadata_errors="replace") as container:
            if not container.streams.audio:
                raise MetricError(f"{file.name} has no audio stream")
            rate = container.streams.audio[0].rate
            planar = av.AudioResampler(format="fltp")
            parts = [p.to_ndarray() for f in container.decode(audio=0) for p in planar.resample(f)]
    except av.error.FFmpegError as error:
        raise MetricError(f"{file.name} cannot be decoded as audio: {error.strerror}") from error
    if not parts:
        raise MetricError(f"{file.name} holds no samples")
    return np.concatenate(parts, axis=1).T, rate
