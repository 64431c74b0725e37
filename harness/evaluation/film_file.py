"""Films as one MP4 file: videos one after the other, each with the sound of its sample, or silent.

The picture is H.264 and the sound AAC, both at the rates of the data. After each video, its last
frame stays for `PAUSE` frames in silence. Captions are in the file's comment, as a JSON list.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from harness.backbone.tokens import split_parts
from harness.data.log_mel import RATE, SAMPLES_PER_FRAME, griffin_lim
from harness.errors import UserError
from harness.evaluation.sample_grid import SHOWN
from metrics import MetricError
from metrics.files.media import package

PAUSE = 8
"""Frames between two videos, about half a second."""
SIDE = 256
"""Smallest side of the picture in pixels; smaller frames are enlarged by a whole number."""
FRAME_RATE = Fraction(RATE, SAMPLES_PER_FRAME)
SOUND_BITS = 128_000
"""Bits of sound for a second."""


def film(x: np.ndarray, shapes: Sequence[tuple[int, ...]], captions: Sequence[str] = ()) -> bytes:
    """Encode samples uint8 (n, ...), whose parts are a video and its log-mel sound of these shapes.

    Raises `UserError` if PyAV is not installed, or has no encoder for H.264 or AAC.
    """
    video, sound = (part.numpy() for part in split_parts(torch.from_numpy(x), shapes))
    try:
        return _encoded(package("av", "video"), video, sound, captions)
    except MetricError as error:
        raise UserError(str(error)) from error


def silent_film(clips: Sequence[np.ndarray], rate: int) -> bytes:
    """Encode videos uint8 (C, T, H, W) of one frame size, at `rate` frames a second.

    Raises `UserError` if PyAV is not installed, or has no encoder for H.264.
    """
    try:
        return _silent(package("av", "video"), clips, rate)
    except MetricError as error:
        raise UserError(str(error)) from error


# Any: the module of PyAV, which is optional.
def _silent(av: Any, clips: Sequence[np.ndarray], rate: int) -> bytes:
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as file:
        try:
            picture = file.add_stream("libx264", rate=rate, options={"crf": "12"})
        except (ValueError, av.FFmpegError) as error:
            raise UserError(f"this PyAV cannot encode H.264 ({error}); write a .png") from error
        picture.height, picture.width, picture.pix_fmt = *_sides((1, *clips[0].shape)), "yuv420p"
        for number, pixels in enumerate(frame for clip in clips for frame in _shown(clip)):
            shown = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            shown.pts, shown.time_base = number, Fraction(1, rate)
            file.mux(picture.encode(shown))
        file.mux(picture.encode(None))
    return content.getvalue()


def _sides(shape: Sequence[int]) -> tuple[int, int]:
    """Return height and width of the picture of videos (n, C, T, H, W), which are even for the codec."""
    height, width = shape[3:]
    factor = -(-SIDE // min(height, width))
    factor += factor % 2 and (height % 2 or width % 2)
    return factor * height, factor * width


def _shown(clip: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the enlarged RGB frames (H', W', 3) of a video uint8 (C, T, H, W), and `PAUSE` times the last."""
    factor = _sides((1, *clip.shape))[0] // clip.shape[2]
    frames = np.broadcast_to(clip, (3, *clip.shape[1:])).transpose(1, 2, 3, 0)
    for frame in (*frames, *[frames[-1]] * PAUSE):
        yield np.ascontiguousarray(frame.repeat(factor, axis=0).repeat(factor, axis=1))


def _heard(mel: np.ndarray) -> np.ndarray:
    """Return the wave float32 of a log-mel spectrogram, with silence for the pause."""
    wave = np.clip(griffin_lim(mel), -1, 1).astype(np.float32)
    return np.concatenate([wave, np.zeros(PAUSE * SAMPLES_PER_FRAME, np.float32)])


# Any: the module of PyAV, which is optional.
def _encoded(av: Any, video: np.ndarray, sound: np.ndarray, captions: Sequence[str]) -> bytes:
    content, (_, _, length, *_) = io.BytesIO(), video.shape
    with av.open(content, "w", format="mp4") as file:
        if captions:
            file.metadata["comment"] = json.dumps([caption[:SHOWN] for caption in captions])
        try:
            picture = file.add_stream("libx264", rate=FRAME_RATE, options={"crf": "12"})
            voice = file.add_stream("aac", rate=RATE, layout="mono", bit_rate=SOUND_BITS)
        except (ValueError, av.FFmpegError) as error:
            raise UserError(f"this PyAV cannot encode H.264 with AAC ({error}); write a .png") from error
        picture.height, picture.width, picture.pix_fmt = *_sides(video.shape), "yuv420p"
        for number, (clip, mel) in enumerate(zip(video, sound, strict=True)):
            begin = number * (length + PAUSE)
            for place, pixels in enumerate(_shown(clip)):
                shown = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                shown.pts, shown.time_base = begin + place, 1 / FRAME_RATE
                file.mux(picture.encode(shown))
            heard = av.AudioFrame.from_ndarray(_heard(mel)[None], format="fltp", layout="mono")
            heard.sample_rate, heard.pts = RATE, begin * SAMPLES_PER_FRAME
            heard.time_base = Fraction(1, RATE)
            file.mux(voice.encode(heard))
        file.mux(picture.encode(None))
        file.mux(voice.encode(None))
    return content.getvalue()
