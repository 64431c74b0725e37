"""Small videos and recordings, for tests of data sets on disk."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soundfile

MILLISECOND = Fraction(1, 1000)
NO_RANDOM_IDS = {"fflags": "+bitexact"}
CLIPS = Fraction(125, 8)
"""Frames per second of the clips that films are cut into."""


def frames(count: int = 16, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    """Return random frames uint8 (T, H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def video(
    pixels: np.ndarray,
    container: str = "matroska",
    codec: str = "ffv1",
    form: str = "bgr0",
    times: Sequence[int] | None = None,
    title: bytes = b"",
) -> bytes:
    """Encode a video, lossless by default, with 8 frames per second or frames at `times` in milliseconds.

    `title` may be in any encoding.
    """
    content = io.BytesIO()
    with av.open(content, "w", format=container, options=NO_RANDOM_IDS) as file:
        _leave_room(file, title)
        stream = file.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], form
        for number, x in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(x, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], MILLISECOND
                stream.codec_context.time_base = MILLISECOND
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return _titled(content.getvalue(), title)


def tone(samples: int = 8192, rate: int = 8000, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)


def sound(samples: np.ndarray, rate: int = 8000, **options: Any) -> bytes:
    """Encode samples (n,) or (n, channels) as a WAV, or in another `format`."""
    content = io.BytesIO()
    soundfile.write(content, samples, rate, **{"format": "WAV", "subtype": "PCM_16"} | options)
    return content.getvalue()


def film(
    pixels: np.ndarray,
    samples: np.ndarray,
    rate: int = 8000,
    fps: Fraction = CLIPS,
    *,
    late: float = 0.0,
    gap: tuple[int, float] | None = None,
    container: str = "matroska",
    codecs: tuple[str, str, str] = ("ffv1", "bgr0", "pcm_s16le"),
    title: bytes = b"",
) -> bytes:
    """Encode a video with sound, lossless by default.

    The samples, (n,) or (n, channels), are written in packets of 100. They begin `late` seconds after the
    picture, or before it if negative. `gap` is a packet and the seconds without sound before it.
    """
    content, codec = io.BytesIO(), codecs[2]
    with av.open(content, "w", format=container, options=NO_RANDOM_IDS) as file:
        _leave_room(file, title)
        picture = file.add_stream(codecs[0], rate=fps)
        picture.height, picture.width, picture.pix_fmt = *pixels.shape[1:3], codecs[1]
        channels = np.reshape((samples * 32767).round().astype(np.int16), (len(samples), -1))
        layout = {1: "mono", 2: "stereo", 5: "5.0"}[channels.shape[1]]
        sound = file.add_stream(codec, rate=rate, layout=layout)
        for number, x in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(x, format="rgb24")
            frame.pts, frame.time_base = number + round(max(-late, 0) * fps), 1 / fps
            file.mux(picture.encode(frame))
        file.mux(picture.encode(None))
        for number, begin in enumerate(range(0, len(channels), 100)):
            packet = np.ascontiguousarray(channels[begin : begin + 100]).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packet, format="s16", layout=layout)
            delay = gap[1] if gap and number >= gap[0] else 0.0
            frame.pts, frame.sample_rate = begin + round((max(late, 0) + delay) * rate), rate
            frame.time_base = Fraction(1, rate)
            file.mux(sound.encode(frame))
        file.mux(sound.encode(None))
    return _titled(content.getvalue(), title)


# Any: a container of PyAV, whose stubs differ between versions.
def _leave_room(file: Any, title: bytes) -> None:
    """Write a placeholder for the title."""
    if title:
        file.metadata["title"] = "?" * len(title)


def _titled(content: bytes, title: bytes) -> bytes:
    """Replace the placeholder by the title, because PyAV only writes titles in UTF-8."""
    return content.replace(b"?" * len(title), title) if title else content


def turned(content: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """Return an MP4 whose frames are shown by a matrix (a, b, c, d): column p, row q to a p + c q, b p + d q.

    The matrix is that of the first track header (ISO 14496-12, 8.3.2), in 16.16 fixed-point numbers.
    """
    place = content.index(b"tkhd") + 44
    a, b, c, d = (value * 2**16 for value in matrix)
    fields = np.array([a, b, 0, c, d, 0, 0, 0, 2**30], ">i4").tobytes()
    return content[:place] + fields + content[place + 36 :]
