"""Videos with their sound on disk: the files that `videos` reads, each with an audio stream."""

from __future__ import annotations

import io
import math

import numpy as np

from harness.config.spec import DataSpec
from harness.data.dataset import Sample
from harness.data.disk.media import Clips, Memory, media_index
from harness.data.disk.sounds import waveform
from harness.data.disk.survey import FileSurvey, common_shape
from harness.data.disk.videos import KIND, MISSING, frames_of, surveyed
from harness.data.generated.moving_digits import FRAMES, clip_length
from harness.data.log_mel import BANDS, HOP, PER_FRAME, RATE, mel_bytes
from harness.errors import UserError
from metrics.files.media import Encoded, package

SAMPLES = HOP * PER_FRAME
"""Of sound in one frame of a clip."""
SECONDS = SAMPLES / RATE
"""One frame of a clip: 64 ms."""
ROUNDING = 1e-4
"""Share of a frame by which containers' ticks may be off."""


class Films:
    """Videos with their sound in files or parquet: clips of 16 frames, one each 64 ms, and their log-mel
    sound (32, 64).

    `data.frames` sets another length. A sample is both parts flattened, the video first. Clips lie end to end
    from the first frame of each film. Frame k of a clip is what the film shows in the middle of its 64 ms,
    and beside it stand the 4 log-mel frames of just that stretch of sound: a film of 15.625 frames a second
    is taken frame by frame, a faster one loses frames, a slower one repeats them. Pictures are made as
    `videos` makes them, sound as `sounds` does, and what those refuse is refused here, by name; so is a film
    without sound, or whose sound has gaps or does not last as long as the picture (2 % and one frame are let
    pass, as silence).
    """

    modality = "joint"
    reads = ("root", "resolution", "channels", "image_key", "label_key", "frames")

    def __init__(self, spec: DataSpec) -> None:
        frames = clip_length(spec, FRAMES)
        self._index = on = media_index(spec, KIND._replace(plural="films"), look)
        lengths = [_slots(count * spacing) for _, count, _, _, spacing, _ in on.seen]
        for item, length in zip(on.items, lengths, strict=True):
            _check_long(item.where, length, frames)
        sizes = [FileSurvey(seen[0], *seen[2:4], channels=3) for seen in on.seen]
        channels, height, width = common_shape(spec, sizes, lambda i: on.items[i].where)
        self.classes, self.class_names = on.classes, on.class_names
        self.shape, self.beside = (channels, frames, height, width), ((BANDS, PER_FRAME * frames),)
        self._clips, self.fingerprint = Clips([length // frames for length in lengths]), on.fingerprint()
        self._memory, self._sounds = Memory(), Memory()

    def __len__(self) -> int:
        return len(self._clips)

    def sample(self, index: int) -> Sample:
        return Sample(self._memory.get(index, self._clip), self.label(index))

    def label(self, index: int) -> int:
        return self._index.labels[self._clips[index][0]]

    def key(self, index: int) -> bytes:
        """All clips of a film fall on one side of the split."""
        return self._index.key(self._clips[index][0])

    def wave(self, index: int) -> np.ndarray:
        """float64 (frames * SAMPLES,) at 8 kHz: the sound of a clip, silence where the film has none."""
        item, clip = self._clips[index]
        whole, length = self._sounds.get(item, self._heard), self.shape[1] * SAMPLES
        begin = clip * length - self._index.seen[item][5]
        heard = whole[max(begin, 0) : max(begin + length, 0)]
        before = min(max(-begin, 0), length)
        return np.pad(heard, (before, length - before - len(heard))).astype(np.float64)

    def _clip(self, index: int) -> np.ndarray:
        item, clip = self._clips[index]
        channels, frames, height, width = self.shape
        shown = shown_at(range(clip * frames, (clip + 1) * frames), self._index.seen[item][4])
        pixels = frames_of(self._film(item), shown, (channels, height, width))
        return np.concatenate([pixels.ravel(), mel_bytes(self.wave(index)).ravel()])

    def _heard(self, item: int) -> np.ndarray:
        return waveform(self._film(item))

    def _film(self, item: int) -> Encoded:
        file = self._index.items[item]
        return Encoded(file.where, file.read())


def look(file: Encoded) -> tuple[int, int, int, float, int]:
    """Frames, width, height, seconds from frame to frame, and samples at 8 kHz from the first frame to the
    first sound, of a film that keeps the rules; raises `UserError` naming it where it does not."""
    times, size = surveyed(file)
    known = [time for time in times if time is not None]
    if len(known) < max(2, len(times)):
        raise UserError(f"{file.name} does not say when its frames are shown; convert it to MP4")
    spacing = (known[-1] - known[0]) / (len(known) - 1)
    sound = waveform(file)
    begin, end, promised = (moment - known[0] for moment in _sounding(file))
    _check_whole(file.name, len(times) * spacing, (begin, end), len(sound) / RATE, promised)
    return len(times), *size, spacing, round(begin * RATE)


def _check_whole(
    name: str, lasts: float, sounding: tuple[float, float], heard: float, promised: float
) -> None:
    """Raise `UserError` for a film that ends early, or whose sound does; in seconds from the first frame."""
    begin, end = sounding
    if max(lasts, end) < (1 - MISSING) * promised - SECONDS:
        raise UserError(
            f"{name} is cut short: {max(lasts, end):.2f} s of {promised:.2f} s; replace or remove it"
        )
    if abs(end - begin - heard) > SECONDS:
        raise UserError(
            f"{name} has gaps in its sound: {heard:.2f} s of it in {end - begin:.2f} s; encode it anew"
        )
    beside = max(min(end, lasts) - max(begin, 0.0), 0.0)
    if beside < (1 - MISSING) * lasts - SECONDS:
        raise UserError(
            f"{name} has sound for {beside:.2f} s of {lasts:.2f} s; cut the picture, or replace or remove it"
        )


def shown_at(frames: range, spacing: float) -> list[int]:
    """The numbers of a film's frames that are shown in the middle of these frames of 64 ms."""
    return [math.floor((frame + 0.5) * SECONDS / spacing + ROUNDING) for frame in frames]


def _slots(seconds: float) -> int:
    """Whole frames of 64 ms."""
    return math.floor(seconds / SECONDS + ROUNDING)


def _sounding(file: Encoded) -> tuple[float, float, float]:
    """When the sound begins and ends by the times of its frames, and when all ends as the container says, in
    seconds."""
    with package("av", "video").open(io.BytesIO(file.content), metadata_errors="replace") as container:
        promised = (container.duration or 0) / 1e6
        frames = [(frame.time, frame.samples / frame.sample_rate) for frame in container.decode(audio=0)]
    if any(time is None for time, _ in frames):
        raise UserError(f"{file.name} does not say when its sound is heard; convert it to MP4")
    return frames[0][0], frames[-1][0] + frames[-1][1], promised


def _check_long(where: str, length: int, frames: int) -> None:
    if length < frames:
        shorter = f", or ask for shorter clips as in --set data.frames={length}" if length > 1 else ""
        raise UserError(
            f"{where} lasts {length * SECONDS:.2f} s and a clip of {frames} frames {frames * SECONDS:.2f} s; remove it{shorter}"
        )
