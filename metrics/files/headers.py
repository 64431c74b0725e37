"""Size, rates and rotation of encoded videos and recordings, read without decoding them completely."""

from __future__ import annotations

from typing import NamedTuple

from metrics.files.containers import container, frames_of
from metrics.files.media import AUDIO, VIDEO, Encoded, Kind
from metrics.files.recordings import declared_rate
from metrics.files.videos import is_turned, upright_size
from metrics.value import MetricError


class Header(NamedTuple):
    """The facts at the beginning of a file; None for those that it does not state."""

    size: tuple[int, int] | None = None
    """Width and height of the upright frames."""
    frame_rate: float | None = None
    sampling_rate: float | None = None
    turned: bool = False
    """A display matrix turns the frames."""


def header_of(file: Encoded, kind: Kind) -> Header:
    """Return the facts at the beginning of a file.

    A file that cannot be read has none. The reader of its content raises the error.
    """
    try:
        return Header(sampling_rate=declared_rate(file)) if kind.name == AUDIO.name else _video(file)
    except MetricError:
        return Header()


def _video(file: Encoded) -> Header:
    with container(file, VIDEO) as opened:
        first = next(frames_of(opened, file), None)
        if first is None:
            return Header()
        rate = opened.streams.video[0].average_rate
        size, turned = upright_size(file.name, first), is_turned(first)
    return Header(size, float(rate) if rate else None, turned=turned)
