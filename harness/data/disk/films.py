"""Videos with sound on disk: the files that `videos` reads, each with an audio stream."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.disk.media import MediaClips, Memory, media_index, unusable
from harness.data.disk.sounds import at_rate, recording, waveform
from harness.data.disk.survey import FileSurvey, common_shape
from harness.data.disk.videos import frames_of, survey_frames
from harness.data.generated.moving_digits import FRAMES, clip_length
from harness.data.log_mel import BANDS, PER_FRAME, RATE, SAMPLES_PER_FRAME, mel_bytes
from harness.data.stored import Stored, sizes_of, spread
from harness.errors import UserError
from metrics.files.containers import container, sounds_of
from metrics.files.media import VIDEO, Encoded
from metrics.files.videos import MISSING
from metrics.value import MetricError

SECONDS = SAMPLES_PER_FRAME / RATE
"""Duration of one frame of a clip: 64 ms."""
ROUNDING = 1e-4
"""Fraction of a frame by which the rounded times of a container may be off."""


class Films(MediaClips):
    """Videos with sound in files or parquet: clips of 16 frames, one every 64 ms, and their log-mel sound
    (32, 64).

    `data.frames` sets another length. A sample is both parts flattened, the video first. Clips are cut end to
    end from the first frame of each film. Frame k of a clip is the frame that the film shows in the middle of
    its 64 ms, and it corresponds to the 4 log-mel frames of the same 64 ms. A film of 15.625 frames a second
    is therefore used frame by frame, a faster one loses frames, and a slower one repeats them. Frames are
    resized as in `videos`, sound is converted as in `sounds`, and both reject the same files. A film is also
    rejected if it has no sound, or if its sound has gaps or ends before the picture. Up to 2 % and one frame
    of missing sound are filled with silence.
    """

    modality = "joint"
    reads = ("root", "resolution", "channels", "image_key", "label_key", "frames")

    def __init__(self, spec: DataSpec) -> None:
        frames = clip_length(spec, FRAMES)
        on = media_index(spec, replace(VIDEO, plural="films"), survey_film)
        lengths = [_clip_frames(film[1] * film[4]) for film in on.surveys]
        for item, length in zip(on.items, lengths, strict=True):
            _check_long(item.where, length, frames)
        sizes = [FileSurvey(survey[0], *survey[2:4], channels=3) for survey in on.surveys]
        channels, height, width = common_shape(spec, sizes, lambda i: on.items[i].where)
        super().__init__(on, [length // frames for length in lengths])
        self.stored = Stored(
            sizes_of((film[2], film[3]) for film in on.surveys),
            spread(1 / film[4] for film in on.surveys),
            spread(film[6] for film in on.surveys),
            sum(film[7] for film in on.surveys),
            len(on.surveys),
        )
        self.shape, self.beside = (channels, frames, height, width), ((BANDS, PER_FRAME * frames),)
        self._sounds = Memory()

    def wave(self, index: int) -> np.ndarray:
        """Return the sound of a clip, float64 (frames * SAMPLES_PER_FRAME,) at 8 kHz, padded with silence."""
        item, clip = self._clips[index]
        sound, length = self._sounds.get(item, self._sound), self.shape[1] * SAMPLES_PER_FRAME
        begin = clip * length - self._index.surveys[item][5]
        samples = sound[max(begin, 0) : max(begin + length, 0)]
        before = min(max(-begin, 0), length)
        return np.pad(samples, (before, length - before - len(samples))).astype(np.float64)

    def _clip(self, index: int) -> np.ndarray:
        item, clip = self._clips[index]
        channels, frames, height, width = self.shape
        numbers = shown_at(range(clip * frames, (clip + 1) * frames), self._index.surveys[item][4])
        pixels = frames_of(self._film(item), numbers, (channels, height, width))
        return np.concatenate([pixels.ravel(), mel_bytes(self.wave(index)).ravel()])

    def _sound(self, item: int) -> np.ndarray:
        return waveform(self._film(item))

    def _film(self, item: int) -> Encoded:
        file = self._index.items[item]
        return Encoded(file.where, file.read())


def survey_film(file: Encoded) -> tuple[int, int, int, float, int, int, bool]:
    """Return frames, width, height, seconds per frame, samples at 8 kHz from the first frame to the first
    sound, the sampling rate, and whether frames are turned.

    Raises `UserError` naming a film that cannot be used.
    """
    times, size, turned = survey_frames(file)
    known = [time for time in times if time is not None]
    if len(known) < max(2, len(times)):
        raise UserError(f"{file.name} has no timestamps for its frames; convert it to MP4")
    spacing = (known[-1] - known[0]) / (len(known) - 1)
    stored = recording(file)
    sound = at_rate(stored, RATE)
    begin, end, declared = (moment - known[0] for moment in _sounding(file))
    _check_complete(file.name, len(times) * spacing, (begin, end), len(sound) / RATE, declared)
    return len(times), *size, spacing, round(begin * RATE), stored.rate, turned


def _check_complete(
    name: str, video: float, sounding: tuple[float, float], sound: float, declared: float
) -> None:
    """Raise `UserError` for a film that ends early, or whose sound has gaps or ends early.

    `video`, `sound` and `declared` are durations in seconds; `sounding` is when the sound begins and ends,
    in seconds from the first frame.
    """
    begin, end = sounding
    if max(video, end) < (1 - MISSING) * declared - SECONDS:
        raise UserError(
            f"{name} is cut short: {max(video, end):.2f} s of {declared:.2f} s; replace or remove it"
        )
    if abs(end - begin - sound) > SECONDS:
        raise UserError(
            f"{name} has gaps in its sound: {sound:.2f} s of sound in {end - begin:.2f} s; encode it again"
        )
    covered = max(min(end, video) - max(begin, 0.0), 0.0)
    if covered < (1 - MISSING) * video - SECONDS:
        raise UserError(
            f"{name} has sound for {covered:.2f} s of {video:.2f} s; cut the picture, or replace or remove it"
        )


def shown_at(frames: range, spacing: float) -> list[int]:
    """Return the indices of the film frames that are shown in the middle of these clip frames of 64 ms."""
    return [math.floor((frame + 0.5) * SECONDS / spacing + ROUNDING) for frame in frames]


def _clip_frames(seconds: float) -> int:
    """Return the number of complete frames of 64 ms."""
    return math.floor(seconds / SECONDS + ROUNDING)


def _sounding(file: Encoded) -> tuple[float, float, float]:
    """Return the begin and the end of the sound by its timestamps, and the duration that the container
    declares, in seconds."""
    try:
        with container(file, VIDEO) as opened:
            declared = (opened.duration or 0) / 1e6
            frames = [(frame.time, frame.samples / frame.sample_rate) for frame in sounds_of(opened, file)]
    except MetricError as error:
        raise unusable(error) from error
    if not frames:
        raise UserError(f"{file.name} has an audio stream without sound; replace or remove it")
    if any(time is None for time, _ in frames):
        raise UserError(f"{file.name} has no timestamps for its sound; convert it to MP4")
    return frames[0][0], frames[-1][0] + frames[-1][1], declared


def _check_long(where: str, length: int, frames: int) -> None:
    if length < frames:
        shorter = f", or use shorter clips: --set data.frames={length}" if length > 1 else ""
        raise UserError(
            f"{where} lasts {length * SECONDS:.2f} s, but a clip of {frames} frames takes "
            f"{frames * SECONDS:.2f} s; "
            f"remove it{shorter}"
        )
