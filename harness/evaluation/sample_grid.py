"""Sample grids: images in a grid, videos as rows of frames, sound as its spectrogram."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence

import numpy as np
import torch

from harness.backbone.tokens import split_parts
from harness.data.log_mel import griffin_lim

VIDEOS = 8
"""Maximum number of rows in a picture of videos."""


CAPTIONS, SHOWN = "captions", 1000
"""Name of the PNG chunk of captions, and the number of characters of a caption that it holds."""
LEAST = 64
"""Smallest side in pixels of an image, a frame or a spectrogram in a picture."""


def picture(x: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Draw samples uint8 (n, ...), whose parts have these shapes, as one uint8 picture.

    Small samples are enlarged by a whole number, so that every pixel of a sample is a square of equal colour.
    Grey pictures are (H, W), colour ones (H, W, 3).
    """
    return enlarged(_drawn(x, shapes), enlargement(shapes[0]))


def count_drawn(samples: int, shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the number of samples that `picture` draws: all, or the first `VIDEOS` videos.

    >>> count_drawn(40, [(3, 32, 32)]), count_drawn(40, [(1, 12, 16, 16), (32, 48)])
    (40, 8)
    """
    return min(samples, VIDEOS) if len(shapes[0]) == 4 else samples


def enlargement(shape: tuple[int, ...]) -> int:
    """Return the factor that brings the shorter side of an image, a frame or a spectrogram to `LEAST`.

    >>> enlargement((1, 8, 8)), enlargement((3, 16, 32, 48)), enlargement((3, 256, 256))
    (8, 2, 1)
    """
    return -(-LEAST // min(shape[-2:]))


def enlarged(picture: np.ndarray, factor: int) -> np.ndarray:
    """Return a picture with every pixel repeated `factor` times in both directions."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _drawn(x: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Draw samples pixel by pixel."""
    parts = [part.numpy() for part in split_parts(torch.from_numpy(x), shapes)]
    if len(parts) == 1 and parts[0].ndim == 4:
        return image_grid(parts[0])
    if parts[0].ndim == 3:
        return image_grid(spectrogram(parts[0]), columns=4)
    return image_grid(
        np.stack([strip([part[i] for part in parts]) for i in range(count_drawn(len(x), shapes))]), columns=1
    )


def strip(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Draw a video (C, F, H, W) as a row of frames, (C, H', W'), with its sound below at the same width."""
    channels, frames, height, width = parts[0].shape
    rows = [parts[0].transpose(0, 2, 1, 3).reshape(channels, height, frames * width)]
    for sound in parts[1:]:
        place = np.arange(frames * width) * sound.shape[1] // (frames * width)
        rows.append(np.repeat(spectrogram(sound[None])[0][..., place], channels, axis=0))
    return np.concatenate(rows, axis=1)


def films(x: np.ndarray, shapes: Sequence[tuple[int, ...]], scale: int = 4) -> np.ndarray:
    """Draw videos with sound, uint8 (n, ...), as one picture: enlarged frames above the waveform."""
    video, sound = (part.numpy() for part in split_parts(torch.from_numpy(x), shapes))
    rows = []
    for frames, mel in zip(video, sound, strict=True):
        row = strip([frames]).repeat(scale, axis=1).repeat(scale, axis=2)
        line = waveform(griffin_lim(mel), height=row.shape[1] // 2, width=row.shape[2])
        rows.append(np.concatenate([row, line[None].repeat(len(row), axis=0)], axis=1))
    return image_grid(np.stack(rows), columns=1, pad=scale)


def waveform(wave: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw a waveform (n,) in [-1, 1] as uint8 (height, width), black on white.

    Each column has a line from its smallest to its largest value. The top row is 1 and the bottom row -1.
    """
    edges = np.arange(width + 1) * len(wave) // width
    parts = [wave[a : max(b, a + 1)] for a, b in itertools.pairwise(edges)]
    place = lambda value: np.round((1 - np.clip(value, -1, 1)) / 2 * (height - 1))  # noqa: E731
    top, bottom = (place(np.array([f(part) for part in parts])) for f in (np.max, np.min))
    rows = np.arange(height)[:, None]
    return np.where((rows >= top) & (rows <= bottom), 0, 255).astype(np.uint8)


def spectrogram(sound: np.ndarray) -> np.ndarray:
    """Return log spectrograms (n, bands, frames) as grey images (n, 1, bands, frames), low bands last."""
    return sound[:, None, ::-1]


def image_grid(pixels: np.ndarray, columns: int = 10, pad: int = 1) -> np.ndarray:
    """Draw images uint8 (n, C, H, W) as one picture, (H', W') for grey and (H', W', 3) for colour."""
    n, channels, height, width = pixels.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    canvas = np.full(
        (rows * (height + pad) - pad, columns * (width + pad) - pad, channels), 255, dtype=np.uint8
    )
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + pad), (i % columns) * (width + pad)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return canvas[:, :, 0] if channels == 1 else canvas


def png(picture: np.ndarray, captions: Sequence[str] = ()) -> bytes:
    """Encode a picture as PNG, with the captions of its samples as a JSON list in a text chunk."""
    from PIL import Image, PngImagePlugin

    buffer, text = io.BytesIO(), PngImagePlugin.PngInfo()
    if captions:
        text.add_itxt(CAPTIONS, json.dumps([caption[:SHOWN] for caption in captions]))
    Image.fromarray(picture).save(buffer, "png", pnginfo=text)
    return buffer.getvalue()
