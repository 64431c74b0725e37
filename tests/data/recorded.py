"""Small videos and recordings, for the tests of data sets on disk."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soundfile

MILLISECOND = Fraction(1, 1000)


def frames(count: int = 16, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    """uint8 (T, H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def video(
    pixels: np.ndarray,
    container: str = "matroska",
    codec: str = "ffv1",
    form: str = "bgr0",
    times: Sequence[int] | None = None,
) -> bytes:
    """Lossless as it stands; 8 frames a second, or one at each of `times` in milliseconds."""
    content = io.BytesIO()
    with av.open(content, "w", format=container, options={"fflags": "+bitexact"}) as file:  # no random ids
        stream = file.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], form
        for number, x in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(x, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], MILLISECOND
                stream.codec_context.time_base = MILLISECOND
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return content.getvalue()


def tone(samples: int = 8192, rate: int = 8000, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)


def sound(samples: np.ndarray, rate: int = 8000, **options: Any) -> bytes:
    """A WAV of samples (n,) or (n, channels), unless `format` says otherwise."""
    content = io.BytesIO()
    soundfile.write(content, samples, rate, **{"format": "WAV", "subtype": "PCM_16"} | options)
    return content.getvalue()
