"""Videos on disk: a folder of files, one subfolder per class, or parquet with a column of encoded videos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from harness.config.data_spec import DataSpec
from harness.data.disk.media import MediaClips, media_index, unusable
from harness.data.disk.pixels import fit
from harness.data.disk.survey import FileSurvey, common_shape
from harness.data.generated.moving_digits import FRAMES, clip_length
from harness.data.stored import Stored, sizes_of, spread
from harness.errors import UserError
from metrics.files.media import VIDEO, Encoded
from metrics.files.videos import Inspected, decoded_frames, inspected, rgb
from metrics.value import MetricError

LEAST_SIDE = 8


class Videos(MediaClips):
    """Videos in files or parquet, cut into clips of 16 frames (`data.frames` for another length).

    Clips are cut end to end from the beginning of each video. Frames are cropped and resized like images
    (`data.resolution`, `data.channels`). Samples are (channels, frames, height, width). Frames after the last
    complete clip are dropped.

    A video is rejected by name if it cannot be decoded to its end, has fewer frames than it declares, or has
    no video stream. It is also rejected if it is shorter than a clip, has a side below LEAST_SIDE pixels, or
    has frames that are unevenly spaced or change size. Frames are turned upright by their display matrix.
    """

    modality = "video"
    reads = ("root", "resolution", "channels", "image_key", "label_key", "frames")

    def __init__(self, spec: DataSpec) -> None:
        frames = clip_length(spec, FRAMES)
        on = media_index(spec, VIDEO, survey_video)
        for item, (_, length, *_) in zip(on.items, on.surveys, strict=True):
            if length < frames:
                count = "1 frame" if length == 1 else f"{length} frames"
                shorter = f", or use shorter clips: --set data.frames={length}" if length > 1 else ""
                raise UserError(f"{item.where} has {count}, but a clip takes {frames}; remove it{shorter}")
        sizes = [FileSurvey(survey[0], *survey[2:4], channels=3) for survey in on.surveys]
        channels, height, width = common_shape(spec, sizes, lambda i: on.items[i].where)
        super().__init__(on, [survey[1] // frames for survey in on.surveys])
        self.stored = Stored(
            sizes_of((size.width, size.height) for size in sizes),
            spread(video[4] for video in on.surveys),
            turned=sum(video[5] for video in on.surveys),
            videos=len(on.surveys),
        )
        self.shape = (channels, frames, height, width)

    def _clip(self, index: int) -> np.ndarray:
        item, clip = self._clips[index]
        frames, file = self.shape[1], self._index.items[item]
        numbers = range(clip * frames, (clip + 1) * frames)
        return frames_of(Encoded(file.where, file.read()), numbers, (self.shape[0], *self.shape[2:]))


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


def survey_video(file: Encoded) -> tuple[int, int, int, float | None, bool]:
    """Return the number of frames, width, height, frames per second if known, and whether they are turned.

    Raises `UserError` naming a video that cannot be used.
    """
    times, size, turned = survey_frames(file)
    return len(times), *size, _frame_rate(times), turned


def _frame_rate(times: list[float | None]) -> float | None:
    if len(times) < 2 or times[0] is None or times[-1] is None or times[-1] <= times[0]:
        return None
    return (len(times) - 1) / (times[-1] - times[0])


def survey_frames(file: Encoded) -> Inspected:
    """Return the time of each frame in seconds, the common size of the upright frames, and whether they are
    turned.

    Raises `UserError` naming a video that cannot be used.
    """
    try:
        found = inspected(file)
    except MetricError as error:
        raise unusable(error) from error
    width, height = found.size
    if min(width, height) < LEAST_SIDE:
        raise UserError(
            f"{file.name} is {width}x{height} pixels, expected at least {LEAST_SIDE}x{LEAST_SIDE}; remove it"
        )
    return found
