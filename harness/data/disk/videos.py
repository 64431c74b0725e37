"""Videos on disk: a folder of files, one subfolder a class, or parquet with a column of encoded videos."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from harness.config.spec import DataSpec
from harness.data.dataset import Sample
from harness.data.disk.folder import Kind
from harness.data.disk.media import Clips, Memory, media_index
from harness.data.disk.pixels import fit
from harness.data.disk.survey import FileSurvey, common_shape
from harness.data.generated.moving_digits import FRAMES, clip_length
from harness.errors import UserError
from metrics.files.media import VIDEO, Encoded, package
from metrics.files.videos import decoded_frames, rgb
from metrics.value import MetricError

KIND = Kind(
    "videos",
    tuple(sorted(VIDEO.suffixes)),
    (
        ".wmv", ".asf", ".flv", ".ogv", ".ts", ".mts", ".m2ts", ".m1v", ".m2v", ".mpe", ".3gp", ".3g2", ".vob", ".mxf", ".dv",
        ".rm", ".webp",
    ),
    "MP4",
)  # fmt: skip
LEAST_SIDE = 8
MISSING = 0.02
"""Share of the frames a container promises that it may lack, and one more: some round."""
UNEVEN = 0.1
"""Share of the usual distance by which frames may lie nearer or further apart: containers round to whole
ticks."""
TICK = 2e-3
"""Seconds by which they may in any case."""


class Videos:
    """Videos in files or parquet, cut into clips of 16 frames (`data.frames` for another length).

    Clips lie end to end from the beginning of each video. Frames are cut and resized as images are
    (`data.resolution`, `data.channels`); samples are (channels, frames, height, width). Frames after a
    video's last whole clip are left out. Refused, by name: what cannot be decoded to its end, has fewer
    frames than it promises, has no video stream, is shorter than a clip, has a side below LEAST_SIDE pixels,
    or has frames that are not evenly spaced, change size, or are stored turned.
    """

    modality = "video"
    reads = ("root", "resolution", "channels", "image_key", "label_key", "frames")

    def __init__(self, spec: DataSpec) -> None:
        frames = clip_length(spec, FRAMES)
        self._index = on = media_index(spec, KIND, look)
        for item, (_, length, *_) in zip(on.items, on.seen, strict=True):
            if length < frames:
                count = "1 frame" if length == 1 else f"{length} frames"
                shorter = f", or ask for shorter clips as in --set data.frames={length}" if length > 1 else ""
                raise UserError(f"{item.where} has {count} and a clip takes {frames}; remove it{shorter}")
        sizes = [FileSurvey(seen[0], *seen[2:], channels=3) for seen in on.seen]
        channels, height, width = common_shape(spec, sizes, lambda i: on.items[i].where)
        self.classes, self.class_names, self.shape = (
            on.classes,
            on.class_names,
            (channels, frames, height, width),
        )
        self._clips = Clips([seen[1] // frames for seen in on.seen])
        self._memory, self.fingerprint = Memory(), on.fingerprint()

    def __len__(self) -> int:
        return len(self._clips)

    def sample(self, index: int) -> Sample:
        return Sample(self._memory.get(index, self._clip), self.label(index))

    def label(self, index: int) -> int:
        return self._index.labels[self._clips[index][0]]

    def _clip(self, index: int) -> np.ndarray:
        item, clip = self._clips[index]
        frames, file = self.shape[1], self._index.items[item]
        wanted = range(clip * frames, (clip + 1) * frames)
        return frames_of(Encoded(file.where, file.read()), wanted, (self.shape[0], *self.shape[2:]))

    def key(self, index: int) -> bytes:
        """All clips of a video fall on one side of the split."""
        return self._index.key(self._clips[index][0])


def frames_of(file: Encoded, wanted: Sequence[int], shape: tuple[int, int, int]) -> np.ndarray:
    """The frames of these numbers, which do not fall, cut and resized: uint8 (channels, len(wanted), height,
    width)."""
    found: list[np.ndarray] = []
    try:
        for number, frame in enumerate(decoded_frames(file)):
            if count := wanted.count(number):
                found += [fit(Image.fromarray(rgb(frame)), shape)] * count
            if len(found) == len(wanted):
                break
    except MetricError as error:
        raise UserError(f"{error}; it could be at the start") from error
    return np.stack(found, 1)


def look(file: Encoded) -> tuple[int, int, int]:
    """Frames, width and height of a video that keeps the rules; raises `UserError` naming it where it does
    not."""
    times, size = surveyed(file)
    return len(times), *size


def surveyed(file: Encoded) -> tuple[list[float | None], tuple[int, int]]:
    """When each frame is shown, in seconds, and the size of all; raises `UserError` where a rule is
    broken."""
    times, sizes = [], set()
    try:
        for frame in decoded_frames(file):
            times.append(frame.time)
            sizes.add((frame.width, frame.height))
            _check_frame(file.name, frame, sizes)
    except MetricError as error:
        raise UserError(f"{error}; replace or remove it") from error
    if not times:
        raise UserError(f"{file.name} has no frames; replace or remove it")
    _check_even(file.name, times)
    promised = _promised(file)
    if len(times) < (1 - MISSING) * promised - 1:
        raise UserError(f"{file.name} is cut short: {len(times)} frames of {promised}; replace or remove it")
    return times, sizes.pop()


def _promised(file: Encoded) -> int:
    """Frames that the container says it has; 0 where it does not say."""
    with package("av", "video").open(io.BytesIO(file.content), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        if stream.frames:
            return stream.frames
        alone = len(container.streams) == 1 and container.duration
        seconds = (
            stream.duration * stream.time_base if stream.duration else alone and container.duration / 1e6
        )
        return round(float((seconds or 0) * (stream.average_rate or 0)))


# Any: a frame of PyAV, an optional package.
def _check_frame(name: str, frame: Any, sizes: set[tuple[int, int]]) -> None:
    if len(sizes) > 1:
        told = " and ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise UserError(
            f"{name} changes its size from frame to frame ({told} pixels); convert it to one size"
        )
    if frame.is_corrupt:
        raise UserError(f"{name} is damaged: a frame could not be decoded whole; replace or remove it")
    if frame.rotation:
        raise UserError(
            f"{name} is stored turned by {frame.rotation} degrees; convert it upright, as ffmpeg does by default"
        )
    width, height = frame.width, frame.height
    if min(width, height) < LEAST_SIDE:
        raise UserError(
            f"{name} is {width}x{height} pixels; the least is {LEAST_SIDE}x{LEAST_SIDE}; remove it"
        )


def _check_even(name: str, times: list[float | None]) -> None:
    """Raise `UserError` for a variable frame rate; streams without times pass."""
    known = [time for time in times if time is not None]
    if len(known) < max(3, len(times)):
        return
    apart = np.diff(known)
    usual = float(np.median(apart))
    if np.abs(apart - usual).max() > max(UNEVEN * usual, TICK):
        raise UserError(
            f"{name} has frames {1000 * apart.min():.0f} to {1000 * apart.max():.0f} ms apart; convert it to a constant "
            "frame rate (ffmpeg -fps_mode cfr)"
        )
