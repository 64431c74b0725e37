"""Videos on disk: a folder of files, one subfolder per class, or parquet with a column of encoded videos."""

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
        ".wmv", ".asf", ".flv", ".ogv", ".ts", ".mts", ".m2ts", ".m1v", ".m2v", ".mpe", ".3gp", ".3g2",
        ".vob", ".mxf", ".dv", ".rm", ".webp",
    ),
    "MP4",
)  # fmt: skip
LEAST_SIDE = 8
MISSING = 0.02
"""Fraction of the declared frames that may be missing, in addition to one, because some containers round."""
UNEVEN = 0.1
"""Relative deviation allowed between the interval of two frames and the median, because containers round to
ticks."""
TICK = 2e-3
"""Deviation in seconds that is always allowed."""


class Videos:
    """Videos in files or parquet, cut into clips of 16 frames (`data.frames` for another length).

    Clips are cut end to end from the beginning of each video. Frames are cropped and resized like images
    (`data.resolution`, `data.channels`). Samples are (channels, frames, height, width). Frames after the last
    complete clip are dropped.

    A video is rejected by name if it cannot be decoded to its end, has fewer frames than it declares, or has
    no video stream. It is also rejected if it is shorter than a clip, has a side below LEAST_SIDE pixels, or
    has frames that are unevenly spaced, change size or are stored rotated.
    """

    modality = "video"
    reads = ("root", "resolution", "channels", "image_key", "label_key", "frames")

    def __init__(self, spec: DataSpec) -> None:
        frames = clip_length(spec, FRAMES)
        self._index = on = media_index(spec, KIND, survey_video)
        for item, (_, length, *_) in zip(on.items, on.surveys, strict=True):
            if length < frames:
                count = "1 frame" if length == 1 else f"{length} frames"
                shorter = f", or use shorter clips: --set data.frames={length}" if length > 1 else ""
                raise UserError(f"{item.where} has {count}, but a clip takes {frames}; remove it{shorter}")
        sizes = [FileSurvey(survey[0], *survey[2:], channels=3) for survey in on.surveys]
        channels, height, width = common_shape(spec, sizes, lambda i: on.items[i].where)
        self.classes, self.class_names = on.classes, on.class_names
        self.shape = (channels, frames, height, width)
        self._clips = Clips([survey[1] // frames for survey in on.surveys])
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
        numbers = range(clip * frames, (clip + 1) * frames)
        return frames_of(Encoded(file.where, file.read()), numbers, (self.shape[0], *self.shape[2:]))

    def key(self, index: int) -> bytes:
        """Return the key of the video, so that all its clips are on the same side of the split."""
        return self._index.key(self._clips[index][0])


def frames_of(file: Encoded, numbers: Sequence[int], shape: tuple[int, int, int]) -> np.ndarray:
    """Return frames by number, cropped and resized: uint8 (channels, len(numbers), height, width).

    `numbers` are in non-decreasing order.
    """
    images: list[np.ndarray] = []
    try:
        for number, frame in enumerate(decoded_frames(file)):
            if count := numbers.count(number):
                images += [fit(Image.fromarray(rgb(frame)), shape)] * count
            if len(images) == len(numbers):
                break
    except MetricError as error:
        raise UserError(f"{error}; it could be read when the run started") from error
    return np.stack(images, 1)


def survey_video(file: Encoded) -> tuple[int, int, int]:
    """Return the number of frames, width and height. Raises `UserError` naming a video that cannot be
    used."""
    times, size = survey_frames(file)
    return len(times), *size


def survey_frames(file: Encoded) -> tuple[list[float | None], tuple[int, int]]:
    """Return the time of each frame in seconds, and the common (width, height).

    Raises `UserError` naming a video that cannot be used.
    """
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
    declared = _declared_frames(file)
    if len(times) < (1 - MISSING) * declared - 1:
        raise UserError(f"{file.name} is cut short: {len(times)} frames of {declared}; replace or remove it")
    return times, sizes.pop()


def _declared_frames(file: Encoded) -> int:
    """Return the number of frames that the container declares, 0 if it does not."""
    with package("av", "video").open(io.BytesIO(file.content), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        if stream.frames:
            return stream.frames
        only_stream = len(container.streams) == 1 and container.duration
        seconds = (
            stream.duration * stream.time_base
            if stream.duration
            else only_stream and container.duration / 1e6
        )
        return round(float((seconds or 0) * (stream.average_rate or 0)))


# Any: a frame of PyAV, an optional package.
def _check_frame(name: str, frame: Any, sizes: set[tuple[int, int]]) -> None:
    if len(sizes) > 1:
        different = " and ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise UserError(f"{name} has frames of different sizes ({different} pixels); convert it to one size")
    if frame.is_corrupt:
        raise UserError(f"{name} is damaged: a frame could not be decoded completely; replace or remove it")
    if frame.rotation:
        raise UserError(
            f"{name} is stored rotated by {frame.rotation} degrees; convert it upright, for example with "
            "ffmpeg"
        )
    width, height = frame.width, frame.height
    if min(width, height) < LEAST_SIDE:
        raise UserError(
            f"{name} is {width}x{height} pixels, expected at least {LEAST_SIDE}x{LEAST_SIDE}; remove it"
        )


def _check_even(name: str, times: list[float | None]) -> None:
    """Raise `UserError` for a variable frame rate; streams without times pass."""
    known = [time for time in times if time is not None]
    if len(known) < max(3, len(times)):
        return
    intervals = np.diff(known)
    median = float(np.median(intervals))
    if np.abs(intervals - median).max() > max(UNEVEN * median, TICK):
        raise UserError(
            f"{name} has a variable frame rate: intervals of {1000 * intervals.min():.0f} to "
            f"{1000 * intervals.max():.0f} ms; convert it to a constant one (ffmpeg -fps_mode cfr)"
        )
