"""Opening of encoded videos and recordings by PyAV, with bounds that are known before anything is decoded.

Only formats whose content is in the file itself are opened. Playlists, session descriptions and lists of
files name other files or addresses, which FFmpeg would open.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

# Any: PyAV is optional, and its stubs differ between versions.
from typing import Any, BinaryIO

from metrics.files.media import AUDIO, VIDEO, Encoded, Kind, package
from metrics.value import MetricError

FORMATS = (
    "aac", "aiff", "avi", "flac", "flv", "gif", "h264", "hevc", "m4v", "matroska", "mov", "mp3", "mpeg",
    "mpegts", "mpegvideo", "ogg", "w64", "wav",
)  # fmt: skip
"""FFmpeg's demuxers that read one file and nothing else."""
LARGEST_FRAME = 2**26
"""Pixels that a frame of a video may have."""
LONGEST_VIDEO = 2**40
"""Pixels that all frames of a video may have together."""
MOST_VALUES = 2**28
"""Values that the channels of a recording may have together: about 93 minutes of mono at 48 kHz."""
_OPTIONS = {
    "format_whitelist": ",".join(FORMATS),
    # Formats that open further files find no protocol to do so.
    "protocol_whitelist": "none",
    "max_pixels": str(LARGEST_FRAME),
}


class _Stream:
    """A file whose impossible seeks fail without an exception, because PyAV prints their tracebacks."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.tell = file.read, file.tell
        self._seek = file.seek

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


@contextmanager
def container(file: Encoded, kind: Kind) -> Iterator[Any]:
    """Open a file with PyAV. Raises `MetricError`, naming the file, for what cannot be opened or decoded."""
    av = package("av", kind.name)
    what = f"cannot be decoded as {kind.name}"
    try:
        with (
            io.BytesIO(file.source) if isinstance(file.source, bytes) else open(file.source, "rb") as content,
            av.open(_Stream(content), metadata_errors="replace", options=dict(_OPTIONS)) as opened,
        ):
            yield opened
    except MetricError:
        raise
    except av.error.ArgumentError as error:
        raise MetricError(
            f"{file.name} {what}: {error.strerror}; its format or codec is not supported"
        ) from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MetricError(f"{file.name} {what}: {getattr(error, 'strerror', None) or error}") from error


def frames_of(opened: Any, file: Encoded) -> Iterator[Any]:
    """Yield the frames of the first video stream.

    Raises `MetricError`, naming the file, without such a stream, and for more pixels than a bound.
    """
    if not opened.streams.video:
        raise MetricError(f"{file.name} has no video stream")
    stream, total = opened.streams.video[0], 0
    codec = stream.codec_context
    if codec is None:
        raise MetricError(
            f"{file.name} has a video stream of an unknown codec; convert it to {VIDEO.convert}"
        )
    if (codec.width or 0) * (codec.height or 0) > LARGEST_FRAME:
        raise MetricError(
            f"{file.name} has frames of {codec.width}x{codec.height} pixels, at most {LARGEST_FRAME:,} are "
            "read; scale it down or remove it"
        )
    codec.options = {"max_pixels": str(LARGEST_FRAME)}
    # Starting threads takes longer than decoding a short clip.
    stream.thread_count = 1
    for frame in opened.decode(video=0):
        total += frame.width * frame.height
        if total > LONGEST_VIDEO:
            raise MetricError(
                f"{file.name} has more than {LONGEST_VIDEO:,} pixels in all its frames; cut or remove it"
            )
        yield frame


def sounds_of(opened: Any, file: Encoded) -> Iterator[Any]:
    """Yield the decoded frames of the first audio stream.

    Raises `MetricError`, naming the file, without such a stream or a rate, and for more samples than a
    bound.
    """
    if not opened.streams.audio:
        raise MetricError(f"{file.name} has no audio stream")
    if opened.streams.audio[0].codec_context is None:
        raise MetricError(f"{file.name} has sound of an unknown codec; convert it to {AUDIO.convert}")
    if not opened.streams.audio[0].rate:
        raise MetricError(f"{file.name} states no sampling rate; replace or remove it")
    total = 0
    for frame in opened.decode(audio=0):
        total += frame.samples * len(frame.layout.channels)
        check_values(total, file.name)
        yield frame


def check_values(values: int, name: str) -> None:
    """Raise `MetricError` for a recording with more values than a bound."""
    if values > MOST_VALUES:
        raise MetricError(
            f"{name} has more than {MOST_VALUES:,} samples in its channels; cut it into shorter recordings"
        )
