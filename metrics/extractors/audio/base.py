"""What an audio extractor is: a frozen network over windows of recordings; each window is a sample of the
distance."""

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
LEVEL = re.compile(r"-\d{1,3}(\.\d+)?")
CHUNK = 64
"""Windows that pass the network at once."""

Tail = Literal["pad", "drop", "every"]
"""What becomes of the end of a recording.

pad     zeros up to the next whole window (YAMNet: a recording has 1 + ceil((n - window) / hop) of them)
drop    left out; a recording shorter than a window is refused (VGGish: 1 + floor((n - window) / hop))
every   a window begins at every hop, filled up with zeros (fadtk's CLAP: ceil(n / hop))
"""


@dataclass(frozen=True)
class AudioExtractor:
    """Recordings at `rate` -> features float32 (windows of all of them, dim), in order, in plain float32.

    They may come as a stream, as in `extract(read_audio(path, extract.rate))`; `count` tells which rows are
    whose. Dither comes after padding, so that there is no digital silence anywhere. Raises `MetricError`,
    which names the recording, for one at another rate, one that is too short, and a silent one without
    dither.
    """

    name: str
    dim: int
    sha256: str
    front: str
    """What the network makes of a window first."""
    rate: int
    window: int
    """In samples."""
    hop: int
    tail: Tail
    least: int
    """Samples that a recording has at least; a window where the tail is dropped."""
    device: torch.device
    network: Callable[[Tensor], Tensor]
    """float32 (B, window) on `device` -> features (B, dim)."""
    dither_dbfs: float | None = DITHER_DBFS
    seed: int = 0
    """Of the dither."""
    accuracy: float | None = None

    modality: ClassVar[str] = "audio"

    @property
    def preprocessing(self) -> str:
        """Everything between the file and the network."""
        dither = (
            "no dither" if self.dither_dbfs is None else f"dither {self.dither_dbfs:g} dBFS seed {self.seed}"
        )
        window, hop = self.window / self.rate, self.hop / self.rate
        return (
            f"mono, {self.rate} Hz by resample_poly, windows of {window:g} s every {hop:g} s, tail {self.tail}, "
            f"{dither}; {self.front}"
        )

    @torch.no_grad()
    def __call__(self, recordings: Iterable[Recording]) -> Tensor:
        with exact_float32(self.device):
            parts = [self.network(part.to(self.device)).float() for part in self._chunks(recordings)]
        if not parts:
            raise MetricError(f"extractor '{self.name}' was given no recordings")
        return torch.cat(parts)

    def _chunks(self, recordings: Iterable[Recording]) -> Iterator[Tensor]:
        """Windows of all recordings, CHUNK to twice as many at once, so that long and many ones fit in
        memory."""
        held: list[Tensor] = []
        for recording in recordings:
            for part in self.windows(recording).split(CHUNK):
                held.append(part)
                if sum(map(len, held)) >= CHUNK:
                    yield torch.cat(held)
                    held = []
        if held:
            yield torch.cat(held)

    def windows(self, recording: Recording) -> Tensor:
        """float32 (windows, window), padded and dithered."""
        self._check(recording)
        count, given = self.count(len(recording.samples)), recording.samples
        length = (count - 1) * self.hop + self.window
        x = np.pad(given[:length], (0, max(length - len(given), 0)))
        if self.dither_dbfs is not None:
            x = dithered(x, self.dither_dbfs, self.seed)
        return torch.from_numpy(x).unfold(0, self.window, self.hop)

    def count(self, samples: int) -> int:
        """How many windows a recording of so many samples has."""
        if self.tail == "every":
            return math.ceil(samples / self.hop)
        further = (samples - self.window) / self.hop
        return 1 + max(math.ceil(further) if self.tail == "pad" else math.floor(further), 0)

    def _check(self, recording: Recording) -> None:
        name, n = recording.name, len(recording.samples)
        if recording.rate != self.rate:
            raise MetricError(
                f"{name} is at {recording.rate} Hz; extractor '{self.name}' takes {self.rate} Hz: "
                f"read it with read_audio(path, {self.rate})"
            )
        least = self.window if self.tail == "drop" else self.least
        if n < least:
            hint = ", or pads shorter ones when named with ?tail=pad" if self.tail == "drop" else ""
            raise MetricError(
                f"{name} lasts {n / self.rate:.3f} s; extractor '{self.name}' takes {least / self.rate:g} s at least{hint}"
            )
        if recording.silent and self.dither_dbfs is None:
            raise MetricError(
                f"{name} is silent, and extractor '{self.name}' adds no dither: name it with ?dither={DITHER_DBFS:g}"
            )


class Options(NamedTuple):
    """What may follow the file in an extractor's name, as in
    `vggish:vggish.safetensors?dither=-60&tail=pad`."""

    dither_dbfs: float | None
    tail: Tail
    seed: int = 0


def split_options(where: str | Path | None, dither_dbfs: float | None, tail: Tail) -> tuple[str, Options]:
    """`<file>?dither=<dBFS below 0, or none>&tail=<tail>&seed=<number>` -> the file, and the options with
    these defaults."""
    path, _, query = str(where or "").partition("?")
    options = Options(dither_dbfs, tail)
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key == "dither" and (value == "none" or LEVEL.fullmatch(value)):
            options = options._replace(dither_dbfs=None if value == "none" else float(value))
        elif key == "tail" and value in get_args(Tail):
            options = options._replace(tail=value)
        elif key == "seed" and value.isdecimal() and int(value) < 2**64:
            options = options._replace(seed=int(value))
        else:
            raise MetricError(
                f"audio option {key}={value}: expected dither=<dBFS below 0, or none>, "
                f"tail=<{'|'.join(get_args(Tail))}> or seed=<whole number>"
            )
    return path, options
