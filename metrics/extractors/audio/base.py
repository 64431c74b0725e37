"""The audio extractor: a frozen network over windows of recordings; a distance compares windows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, get_args
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from metrics.extractors.base import exact_float32
from metrics.files.recordings import Recording, dithered
from metrics.value import MetricError

DITHER_DBFS = -60.0
"""Default level of the dither in dB relative to full scale."""
LEVEL = re.compile(r"-\d{1,3}(\.\d+)?")
CHUNK = 64
"""Number of windows in one pass of the network."""

Tail = Literal["pad", "drop", "every"]
"""Treatment of the end of a recording of n samples, and the resulting number of windows.

pad     1 + ceil((n - window) / hop): zeros complete the last window (YAMNet)
drop    1 + floor((n - window) / hop): the rest is dropped; a window is the shortest recording (VGGish)
every   ceil(n / hop): a window begins at every hop and is completed with zeros (fadtk's CLAP)
"""


@dataclass(frozen=True)
class AudioExtractor:
    """A function from recordings at `rate` to features float32 (windows of all recordings, dim), in order.

    Recordings may be a stream, for example `extract(read_audio(path, extract.rate))`; `count` is the number
    of rows of each. Dither is added after padding, so that no window contains digital silence. Raises
    `MetricError`, naming the recording, if it has another rate, is too short, or is silent without dither.
    """

    name: str
    dim: int
    sha256: str
    front: str
    """Description of the network's front end."""
    rate: int
    """Samples per second."""
    window: int
    """Length of a window in samples."""
    hop: int
    """Distance between the beginnings of windows in samples."""
    tail: Tail
    least: int
    """Smallest number of samples in a recording; if the tail is dropped it is a window instead."""
    device: torch.device
    network: Callable[[Tensor], Tensor]
    """Function from float32 (B, window) on `device` to features (B, dim)."""
    dither_dbfs: float | None = DITHER_DBFS
    seed: int = 0
    """Seed of the dither."""
    accuracy: float | None = None
    """Accuracy on held-out data, for a classifier trained on this data set."""

    modality: ClassVar[str] = "audio"

    @property
    def preprocessing(self) -> str:
        """Description of all steps from the file to the network's features."""
        dither = (
            "no dither" if self.dither_dbfs is None else f"dither {self.dither_dbfs:g} dBFS seed {self.seed}"
        )
        window, hop = self.window / self.rate, self.hop / self.rate
        return (
            f"mono, {self.rate} Hz by resample_poly, windows of {window:g} s every {hop:g} s, "
            f"tail {self.tail}, {dither}; {self.front}"
        )

    @torch.no_grad()
    def __call__(self, recordings: Iterable[Recording]) -> Tensor:
        with exact_float32(self.device):
            parts = [self.network(part.to(self.device)).float() for part in self._chunks(recordings)]
        if not parts:
            raise MetricError(f"extractor '{self.name}' was given no recordings")
        return torch.cat(parts)

    def _chunks(self, recordings: Iterable[Recording]) -> Iterator[Tensor]:
        """Yield the windows of all recordings in batches of CHUNK to 2 * CHUNK, which bounds the memory."""
        pending: list[Tensor] = []
        for recording in recordings:
            for part in self.windows(recording).split(CHUNK):
                pending.append(part)
                if sum(map(len, pending)) >= CHUNK:
                    yield torch.cat(pending)
                    pending = []
        if pending:
            yield torch.cat(pending)

    def windows(self, recording: Recording) -> Tensor:
        """Return the windows of a recording, float32 (windows, window), padded and dithered."""
        self._check(recording)
        count, given = self.count(len(recording.samples)), recording.samples
        length = (count - 1) * self.hop + self.window
        x = np.pad(given[:length], (0, max(length - len(given), 0)))
        if self.dither_dbfs is not None:
            x = dithered(x, self.dither_dbfs, self.seed)
        return torch.from_numpy(x).unfold(0, self.window, self.hop)

    def count(self, samples: int) -> int:
        """Return the number of windows of a recording, given its number of samples."""
        if self.tail == "every":
            return math.ceil(samples / self.hop)
        hops = (samples - self.window) / self.hop
        return 1 + max(math.ceil(hops) if self.tail == "pad" else math.floor(hops), 0)

    def _check(self, recording: Recording) -> None:
        name, n = recording.name, len(recording.samples)
        if recording.rate != self.rate:
            raise MetricError(
                f"{name} is at {recording.rate} Hz; extractor '{self.name}' takes {self.rate} Hz: "
                f"read it with read_audio(path, {self.rate})"
            )
        least = self.window if self.tail == "drop" else self.least
        if n < least:
            hint = "; to pad shorter recordings, add ?tail=pad to its name" if self.tail == "drop" else ""
            raise MetricError(
                f"{name} lasts {n / self.rate:.3f} s; extractor '{self.name}' needs at least "
                f"{least / self.rate:g} s{hint}"
            )
        if recording.silent and self.dither_dbfs is None:
            raise MetricError(
                f"{name} is silent, and extractor '{self.name}' adds no dither; add ?dither={DITHER_DBFS:g} "
                "to its name"
            )


class Options(NamedTuple):
    """Options after the file in an extractor's name, for example
    `vggish:vggish.safetensors?dither=-60&tail=pad`.
    """

    dither_dbfs: float | None
    tail: Tail
    seed: int = 0


def split_options(where: str | Path | None, dither_dbfs: float | None, tail: Tail) -> tuple[str, Options]:
    """Return the file and the options of `<file>?dither=<dBFS below 0, or none>&tail=<tail>&seed=<number>`.

    `dither_dbfs` and `tail` are the defaults. Raises `MetricError` for an unknown option or value.
    """
    path, _, query = str(where or "").partition("?")
    options = Options(dither_dbfs, tail)
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key == "dither" and (value == "none" or LEVEL.fullmatch(value)):
            options = options._replace(dither_dbfs=None if value == "none" else float(value))
        elif key == "tail" and value in get_args(Tail):
            options = options._replace(tail=value)
        elif key == "seed" and value.isdecimal() and len(value) <= 20 and int(value) < 2**64:
            options = options._replace(seed=int(value))
        else:
            raise MetricError(
                f"audio option {key}={value}: expected dither=<dBFS below 0, or none>, "
                f"tail=<{'|'.join(get_args(Tail))}> or seed=<whole number>"
            )
    return path, options
