"""Videos at the border: files, parquet rows or an array in, batches of clips uint8 (B, T, C, H, W) out.

A clip is `frames` frames of one video, `stride` apart, that begin at its first frame or at a frame drawn from
a stream that depends on the seed and on the video's number alone: one clip a video, as StyleGAN-V's protocol
has it.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metrics.files.media import VIDEO, Encoded, encoded, holds, package
from metrics.value import MetricError

STARTS = ("random", "first")
_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    MemoryError,
    TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a damaged npy or npz file raises; zipfile's for what it does not unpack is a RuntimeError."""


class Video(NamedTuple):
    name: str
    length: int
    """In frames."""
    read: Callable[[range], np.ndarray]
    """The frames of these numbers, uint8 (T, H, W, C)."""


def is_video(path: str | Path) -> bool:
    """Whether `read_videos` reads it: videos in files or in parquet, or an array of five dimensions in npz or
    npy."""
    path = Path(path)
    if path.suffix not in (".npz", ".npy"):
        return holds(path, VIDEO)
    try:
        return len(_header(path).shape) == 5
    except MetricError:  # statistics, or damaged: whoever reads it says so
        return False


def read_videos(
    path: str | Path,
    frames: int,
    *,
    batch: int = 16,
    stride: int = 1,
    start: str = "random",
    seed: int = 0,
    dropped: list[str] | None = None,
) -> Iterator[Tensor]:
    """Clips of all videos of `path`, in the order of their names, uint8 (<= batch, frames, C, H, W).

    `path` is a folder of videos or one video (mp4, webm, gif, ...), parquet with a column `video`, or an
    array (N, T, H, W, C) of bytes in npy or npz (`arr_0`, or the only one). `start` is `random` or `first`.
    Videos that are too short are refused; where a list `dropped` is given they are left out and named in it.
    Raises `MetricError`, which names the file, for what cannot be decoded and for videos of several sizes.
    """
    if frames < 1 or stride < 1 or batch < 1 or start not in STARTS:
        raise MetricError(
            f"clips of frames={frames}, stride={stride}, batch={batch}, start='{start}': "
            f"expected numbers above 0 and a start of {' or '.join(STARTS)}"
        )
    clips = _clips(Path(path), (frames - 1) * stride + 1, stride, start, seed, dropped)
    first = next(clips, None)
    if first is None:
        raise MetricError(
            f"no video of {path} has the {(frames - 1) * stride + 1} frames that a clip takes; "
            f"{len(dropped or ())} are shorter"
        )
    held = [first]
    for clip in clips:
        if clip[1].shape != first[1].shape:
            raise MetricError(
                f"{clip[0]} has frames of {_size(clip[1])}, {first[0]} of {_size(first[1])}: give videos of one size"
            )
        if len(held) == batch:
            yield _stack(held)
            held = []
        held.append(clip)
    yield _stack(held)


def _clips(
    path: Path, span: int, stride: int, start: str, seed: int, dropped: list[str] | None
) -> Iterator[tuple[str, np.ndarray]]:
    for number, video in enumerate(_videos(path)):
        spare = video.length - span
        if spare < 0:
            if dropped is None:
                frames = "1 frame" if video.length == 1 else f"{video.length} frames"
                raise MetricError(f"{video.name} has {frames}; a clip takes {span}")
            dropped.append(video.name)
            continue
        begin = int(np.random.default_rng([seed, number]).integers(spare + 1)) if start == "random" else 0
        yield video.name, video.read(range(begin, begin + span, stride))


def _videos(path: Path) -> Iterator[Video]:
    if path.suffix in (".npz", ".npy"):
        array = _array(path)
        for number, pixels in enumerate(array):
            yield Video(f"{path} video {number}", len(pixels), lambda wanted, x=pixels: np.asarray(x[wanted]))
        return
    for file in encoded(path, VIDEO):
        length = sum(1 for _ in decoded_frames(file))
        yield Video(file.name, length, lambda wanted, x=file: _frames(x, wanted))


def _frames(file: Encoded, wanted: range) -> np.ndarray:
    chosen = islice(decoded_frames(file), wanted.start, wanted.stop, wanted.step)
    return np.stack([rgb(frame) for frame in chosen])


def decoded_frames(file: Encoded) -> Iterator[Any]:
    """Frames as PyAV has them. Containers misstate how many there are, so that is found by decoding."""
    av = package("av", "video")
    source = io.BytesIO(file.source) if isinstance(file.source, bytes) else str(file.source)
    try:
        with av.open(source, metadata_errors="replace") as container:
            if not container.streams.video:
                raise MetricError(f"{file.name} has no video stream")
            container.streams.video[0].thread_count = 1  # starting threads costs more than a short clip does
            yield from container.decode(video=0)
    except av.error.FFmpegError as error:
        raise MetricError(f"{file.name} cannot be decoded as video: {error.strerror}") from error


def rgb(frame: Any) -> np.ndarray:
    """A frame of `decoded_frames` as uint8 (H, W, 3); on one thread, since starting more costs more than a
    small frame."""
    return frame.reformat(format="rgb24", threads=1).to_ndarray()


def _array(path: Path) -> np.ndarray:
    """(N, T, H, W, C) of bytes; an npy file stays on disk until its frames are asked for."""
    header = _header(path)
    if header.dtype != np.uint8:
        raise MetricError(f"{path} holds {header.dtype}; give bytes, uint8 in 0..255, as they would be saved")
    if len(header.shape) != 5 or header.shape[-1] not in (1, 3) or 0 in header.shape:
        raise MetricError(f"{path} has shape {header.shape}; expected (N, T, H, W, C) with 1 or 3 channels")
    with _readable(path):
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as content:
            return content[header.key]


class _Header(NamedTuple):
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype


def _header(path: Path) -> _Header:
    """Shape and type without the values; of an npz, of `arr_0` or of its only array."""
    with _readable(path):
        if path.suffix == ".npy":
            with open(path, "rb") as content:
                return _Header("", *_described(content))
        with zipfile.ZipFile(path) as content:
            keys = [name.removesuffix(".npy") for name in content.namelist()]
            key = "arr_0" if "arr_0" in keys else keys[0] if len(keys) == 1 else ""
            if not key:
                raise MetricError(f"{path} holds {', '.join(keys) or 'nothing'}; expected the array arr_0")
            with content.open(f"{key}.npy") as member:
                return _Header(key, *_described(member))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever numpy and zipfile raise for a file that is none of theirs, or damaged, as a `MetricError` that
    names it."""
    try:
        yield
    except MetricError:
        raise
    except _BROKEN as error:
        raise MetricError(
            f"{path} is not a whole numpy file: {str(error) or type(error).__name__}"
        ) from error


def _described(content: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(content)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(content)
    return shape, dtype


def _size(clip: np.ndarray) -> str:
    return "x".join(map(str, clip.shape[1:]))


def _stack(clips: list[tuple[str, np.ndarray]]) -> Tensor:
    return torch.from_numpy(np.stack([pixels for _, pixels in clips])).permute(0, 1, 4, 2, 3).contiguous()
