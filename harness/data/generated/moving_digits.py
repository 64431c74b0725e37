"""Videos of scikit-learn's digits that move through a room of 16x16 pixels and bounce off its walls."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.dataset import Sample
from harness.data.generated.digits import Digits
from harness.errors import UserError
from harness.runtime.random_streams import Streams

SIDE, DIGIT, FRAMES = 16, 8, 16
ROOM = SIDE - DIGIT
"""Range of the digit's corner in pixels, on each axis."""
SLOW, FAST = 0.5, 1.5
"""Limits of the speed in pixels per frame, on each axis."""
CLIPS_EACH = 2


class MovingDigits:
    """Moving digits: 16 grey frames of 16x16 (`data.frames` for another length), ten classes.

    There are 3,594 videos, (1, frames, 16, 16), two of each handwritten digit, both on the same side of the
    split. On each axis the speed is constant, uniform in SLOW .. FAST, and its sign changes at a wall. Digits
    are placed at subpixel positions with bilinear weights, so the centre of mass follows the exact path.
    """

    modality = "video"
    reads = ("frames",)
    classes = 10
    motion: ClassVar[dict[str, float]] = {"room": ROOM, "slow": SLOW, "fast": FAST}
    """Parameters of the paths, for metrics that compare motion with the generator."""

    def __init__(self, spec: DataSpec) -> None:
        self._digits = Digits(spec)
        frames = clip_length(spec, FRAMES)
        self.shape = (1, frames, SIDE, SIDE)
        drawn = Streams(0).uniform("data/moving_digits", range(len(self)), (2, 3)).numpy().astype(np.float64)
        start, speed, sign = drawn[..., 0] * ROOM, SLOW + (FAST - SLOW) * drawn[..., 1], drawn[..., 2] < 0.5
        self.position, self.velocity = reflected(start, np.where(sign, -speed, speed), np.arange(frames))
        self._pixels = placed(digit_images(self._digits, len(self)), self.position)
        self.fingerprint = hashlib.sha256(self._pixels.tobytes()).hexdigest()[:16]

    position: np.ndarray
    """Row and column of the digit's upper left corner in pixels, 0 .. ROOM, (videos, frames, 2)."""
    velocity: np.ndarray
    """Velocity in pixels per frame when leaving that position, (videos, frames, 2)."""

    def __len__(self) -> int:
        return CLIPS_EACH * len(self._digits)

    def sample(self, index: int) -> Sample:
        return Sample(self._pixels[index][None], self._digits.sample(index % len(self._digits)).label)

    def key(self, index: int) -> bytes:
        return self._digits.key(index % len(self._digits))


def clip_length(spec: DataSpec, default: int) -> int:
    """Return `data.frames` or its default. Raises `UserError` for a single frame."""
    if spec.frames == 1:
        raise UserError(
            f"data.frames = 1, but '{spec.name}' needs at least 2; set 2 or more, or leave it out for "
            f"{default}"
        )
    return spec.frames or default


def reflected(start: np.ndarray, velocity: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and velocities (N, T, 2) at `times` (T,) of points that start at (N, 2) and reflect at
    0 and ROOM."""
    free = start[:, None] + velocity[:, None] * times[:, None]
    phase = np.mod(free, 2 * ROOM)
    return np.minimum(phase, 2 * ROOM - phase), np.where(phase < ROOM, 1, -1) * velocity[:, None]


def digit_images(digits: Digits, count: int) -> np.ndarray:
    """Return float64 (count, 8, 8) in 0..255, cycling through the digits."""
    return np.stack([digits.sample(i % len(digits)).x[0] for i in range(count)]).astype(np.float64)


def placed(images: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Draw images (N, 8, 8) on frames uint8 (N, T, 16, 16), with corners (row, column) at (N, T, 2)."""
    rows, columns = (_weights(corner[..., axis]) for axis in (0, 1))
    return np.round(rows @ images[:, None] @ columns.swapaxes(-1, -2)).astype(np.uint8)


def _weights(corner: np.ndarray) -> np.ndarray:
    """Return bilinear weights (N, T, SIDE, DIGIT) from lines of the image to lines of the frame, for corners
    (N, T)."""
    distance = np.arange(SIDE)[:, None] - np.arange(DIGIT) - corner[..., None, None]
    return np.maximum(0, 1 - np.abs(distance))
