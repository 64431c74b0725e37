"""Videos from files, parquet rows or an array, as batches of clips uint8 (B, T, C, H, W).

Each video gives one clip of `frames` frames at a distance of `stride`, as in StyleGAN-V's protocol. It begins
at the first frame or at a random one, drawn from a stream that depends only on the seed and the video's
number.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metrics.files.containers import container, frames_of
from metrics.files.media import VIDEO, Encoded, encoded, holds
from metrics.files.numpy_files import BROKEN, check_members
from metrics.value import MetricError

STARTS = ("random", "first")
MISSING = 0.02
"""Fraction of the declared frames that may be missing, in addition to one, because some containers round."""
UNEVEN = 0.1
"""Relative deviation allowed between the interval of two frames and the median, because containers round to
ticks."""
TICK = 2e-3
"""Deviation in seconds that is always allowed."""


class Video(NamedTuple):
    """One video, whose frames are decoded when they are read."""

    name: str
    length: int
    """Number of frames."""
    read: Callable[[range], np.ndarray]
    """Function from frame numbers to frames uint8 (T, H, W, C)."""


def is_video(path: str | Path) -> bool:
    """Return True if `read_videos` reads the path: video files, parquet, or a 5-dimensional array in npz or
    npy.
    """
    path = Path(path)
    if path.suffix not in (".npz", ".npy"):
        return holds(path, VIDEO)
    try:
        return len(_header(path).shape) == 5
    # Statistics, or a damaged file, which is reported when it is read.
    except MetricError:
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
    """Yield clips of all videos, in the order of their names, in batches uint8 (<= batch, frames, C, H, W).

    `path` is a folder of videos, one video (mp4, webm, gif, ...), parquet with a column `video`, or an array
    (N, T, H, W, C) of bytes in npy or npz (`arr_0`, or the only array). `start` is `random` or `first`.
    Videos that are too short are rejected; if a list `dropped` is given, their names are added to it instead.
    Raises `MetricError`, naming the file, for videos that cannot be decoded and for videos of different
    sizes.
    """
    if frames < 1 or stride < 1 or batch < 1 or start not in STARTS:
        raise MetricError(
            f"clips of frames={frames}, stride={stride}, batch={batch}, start='{start}'; "
            f"expected numbers of 1 or more and a start of {' or '.join(STARTS)}"
        )
    clips = _clips(Path(path), (frames - 1) * stride + 1, stride, start, seed, dropped)
    first = next(clips, None)
    if first is None:
        raise MetricError(
            f"no video of {path} has the {(frames - 1) * stride + 1} frames that a clip needs; "
            f"{len(dropped or ())} are shorter"
        )
    pending = [first]
    for clip in clips:
        if clip[1].shape != first[1].shape:
            raise MetricError(
                f"{clip[0]} has frames of {_size(clip[1])}, but {first[0]} has {_size(first[1])}; "
                "give videos of one size"
            )
        if len(pending) == batch:
            yield _stack(pending)
            pending = []
        pending.append(clip)
    yield _stack(pending)


def _clips(
    path: Path, span: int, stride: int, start: str, seed: int, dropped: list[str] | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the clip (T, H, W, C) of each video, which must have `span` frames."""
    for number, video in enumerate(_videos(path)):
        spare = video.length - span
        if spare < 0:
            if dropped is None:
                frames = "1 frame" if video.length == 1 else f"{video.length} frames"
                raise MetricError(f"{video.name} has {frames}; a clip needs {span}")
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
        yield Video(file.name, len(inspected(file).times), lambda wanted, x=file: _frames(x, wanted))


def _frames(file: Encoded, wanted: range) -> np.ndarray:
    chosen = islice(decoded_frames(file), wanted.start, wanted.stop, wanted.step)
    return np.stack([rgb(frame) for frame in chosen])


def decoded_frames(file: Encoded) -> Iterator[Any]:
    """Yield PyAV's frames; counting them is reliable, while the numbers stated by containers are not."""
    with container(file, VIDEO) as opened:
        yield from frames_of(opened, file)


def rgb(frame: Any) -> np.ndarray:
    """Return a frame of `decoded_frames` as uint8 (H, W, 3), turned upright by its display matrix."""
    # Starting threads takes longer than converting a small frame.
    pixels = frame.reformat(format="rgb24", threads=1).to_ndarray()
    turn = _turn(frame)
    if turn is None:
        return pixels
    if turn.transposed:
        pixels = pixels.transpose(1, 0, 2)
    pixels = pixels[:, ::-1] if turn.mirrored else pixels
    return np.ascontiguousarray(pixels[::-1] if turn.flipped else pixels)


class _Turn(NamedTuple):
    """The steps that turn a frame upright, in order: transpose, mirror left-right, flip up-down."""

    transposed: bool
    mirrored: bool
    flipped: bool


def _turn(frame: Any) -> _Turn | None:
    """Return how to turn a frame upright, None for upright frames.

    The display matrix maps column p and row q of the frame to a p + c q and b p + d q (libavutil/display.h).
    Raises `ValueError` for a matrix that does more than turn by quarters and mirror.
    """
    matrix = next((x for x in frame.side_data if x.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return None
    a, b, _, c, d = np.sign(np.frombuffer(bytes(matrix), "=i4")[:5]).tolist()
    if a and d and not (b or c):
        return _Turn(False, a < 0, d < 0)
    if b and c and not (a or d):
        return _Turn(True, c < 0, b < 0)
    raise ValueError(f"by {frame.rotation} degrees")


def is_turned(frame: Any) -> bool:
    """Return whether a display matrix turns or mirrors a frame."""
    turn = _turn(frame)
    return turn is not None and any(turn)


class Inspected(NamedTuple):
    """The frames of a complete video."""

    times: list[float | None]
    """Time of each frame in seconds."""
    size: tuple[int, int]
    """Width and height of the upright frames."""
    turned: bool = False
    """A display matrix turns the frames upright."""


def inspected(file: Encoded) -> Inspected:
    """Decode a video to its end and return its frames' times and size.

    Raises `MetricError`, naming the video, if it cannot be decoded, is damaged or cut short, has no frames,
    frames of different sizes, a variable frame rate, or frames turned by other than quarters.
    """
    times, sizes, turned = [], set(), False
    for frame in decoded_frames(file):
        times.append(frame.time)
        sizes.add(upright_size(file.name, frame))
        turned = turned or is_turned(frame)
        if len(sizes) > 1:
            different = " and ".join(f"{width}x{height}" for width, height in sorted(sizes))
            raise MetricError(
                f"{file.name} has frames of different sizes ({different} pixels); convert it to one size"
            )
        if frame.is_corrupt:
            raise MetricError(
                f"{file.name} is damaged: a frame could not be decoded completely; replace or remove it"
            )
    if not times:
        raise MetricError(f"{file.name} has no frames; replace or remove it")
    _check_even(file.name, times)
    declared = _declared_frames(file)
    if len(times) < (1 - MISSING) * declared - 1:
        raise MetricError(
            f"{file.name} is cut short: {len(times)} frames of {declared}; replace or remove it"
        )
    return Inspected(times, sizes.pop(), turned)


def upright_size(name: str, frame: Any) -> tuple[int, int]:
    """Return width and height of a frame that is turned upright.

    Raises `MetricError`, naming the video, for a frame that is turned by other than quarters.
    """
    try:
        turn = _turn(frame)
    except ValueError as error:
        raise MetricError(
            f"{name} is stored turned {error}; convert it upright, for example with ffmpeg"
        ) from error
    return (frame.height, frame.width) if turn and turn.transposed else (frame.width, frame.height)


def _check_even(name: str, times: list[float | None]) -> None:
    """Raise `MetricError` for a variable frame rate; streams without times pass."""
    known = [time for time in times if time is not None]
    if len(known) < max(3, len(times)):
        return
    intervals = np.diff(known)
    median = float(np.median(intervals))
    if np.abs(intervals - median).max() > max(UNEVEN * median, TICK):
        raise MetricError(
            f"{name} has a variable frame rate: intervals of {1000 * intervals.min():.0f} to "
            f"{1000 * intervals.max():.0f} ms; convert it to a constant one (ffmpeg -fps_mode cfr)"
        )


def _declared_frames(file: Encoded) -> int:
    """Return the number of frames that the container declares, 0 if it does not."""
    with container(file, VIDEO) as opened:
        stream = opened.streams.video[0]
        if stream.frames:
            return stream.frames
        only_stream = len(opened.streams) == 1 and opened.duration
        seconds = (
            stream.duration * stream.time_base if stream.duration else only_stream and opened.duration / 1e6
        )
        return round(float((seconds or 0) * (stream.average_rate or 0)))


def _array(path: Path) -> np.ndarray:
    """Return the array uint8 (N, T, H, W, C) of a file; an npy file is memory-mapped."""
    header = _header(path)
    if header.dtype != np.uint8:
        raise MetricError(f"{path} holds {header.dtype}; give bytes, uint8 in 0..255, as saved in a file")
    if len(header.shape) != 5 or header.shape[-1] not in (1, 3) or 0 in header.shape:
        raise MetricError(f"{path} has shape {header.shape}; expected (N, T, H, W, C) with 1 or 3 channels")
    with _readable(path):
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        check_members(path)
        with np.load(path, allow_pickle=False) as content:
            return content[header.key]


class _Header(NamedTuple):
    """The name of an array in an npz file (empty for npy), its shape and type."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype


def _header(path: Path) -> _Header:
    """Read the header of an npy file, or of `arr_0` or the only array of an npz file, without the values."""
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
    """Raise `MetricError`, naming the file, for an error of numpy or zipfile: it is damaged or foreign."""
    try:
        yield
    except MetricError:
        raise
    except BROKEN as error:
        raise MetricError(
            f"{path} is not a complete numpy file: {str(error) or type(error).__name__}"
        ) from error


def _described(content: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and type that an npy stream describes."""
    version = np.lib.format.read_magic(content)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(content)
    return shape, dtype


def _size(clip: np.ndarray) -> str:
    return "x".join(map(str, clip.shape[1:]))


def _stack(clips: list[tuple[str, np.ndarray]]) -> Tensor:
    return torch.from_numpy(np.stack([pixels for _, pixels in clips])).permute(0, 1, 4, 2, 3).contiguous()
