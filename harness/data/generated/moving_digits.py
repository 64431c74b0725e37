"""scikit-learn's 1,797 digits, each gliding through a room of 16x16 pixels and bouncing off its walls: 3,594
videos."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import numpy as np

from harness.config.spec import DataSpec
from harness.data.dataset import Sample
from harness.data.generated.digits import Digits
from harness.errors import UserError
from harness.runtime.random_streams import Streams

SIDE, DIGIT, FRAMES = 16, 8, 16
ROOM = SIDE - DIGIT
"""Pixels that a digit's corner can go, on each axis."""
SLOW, FAST = 0.5, 1.5
"""Pixels a frame, on each axis."""
CLIPS_EACH = 2


class MovingDigits:
    """Moving digits: 16 grey frames of 16x16 (`data.frames` for another length), ten classes.

    On each axis the speed is constant, even in SLOW .. FAST, and its sign turns at a wall. A digit lies
    between pixels by bilinear weights, so that its centre of mass moves exactly as it does. Samples are (1,
    frames, 16, 16). Both videos of one handwritten digit fall on the same side of the split.
    """

    modality = "video"
    reads = ("frames",)
    classes = 10
    motion: ClassVar[dict[str, float]] = {"room": ROOM, "slow": SLOW, "fast": FAST}
    """What paths of digits are like, for metrics that know their truth."""

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
    """(videos, frames, 2): row and column of the digit's upper left corner in pixels, 0 .. ROOM."""
    velocity: np.ndarray
    """(videos, frames, 2): pixels a frame, as it leaves that position."""

    def __len__(self) -> int:
        return CLIPS_EACH * len(self._digits)

    def sample(self, index: int) -> Sample:
        return Sample(self._pixels[index][None], self._digits.sample(index % len(self._digits)).label)

    def key(self, index: int) -> bytes:
        return self._digits.key(index % len(self._digits))


def clip_length(spec: DataSpec, usual: int) -> int:
    """`data.frames`, or the usual number of frames."""
    if spec.frames == 1:
        raise UserError(f"data.frames = 1, but '{spec.name}' moves: give 2 or more, or none for {usual}")
    return spec.frames or usual


def reflected(start: np.ndarray, velocity: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities (N, T, 2) at `times` (T,) of points that start at (N, 2) and turn at 0 and
    ROOM."""
    free = start[:, None] + velocity[:, None] * times[:, None]
    way = np.mod(free, 2 * ROOM)
    return np.minimum(way, 2 * ROOM - way), np.where(way < ROOM, 1, -1) * velocity[:, None]


def digit_images(digits: Digits, count: int) -> np.ndarray:
    """float64 (count, 8, 8) of 0..255, the digits in turn."""
    return np.stack([digits.sample(i % len(digits)).x[0] for i in range(count)]).astype(np.float64)


def placed(images: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Images (N, 8, 8) with their corner at (N, T, 2), row and column, on frames uint8 (N, T, 16, 16)."""
    rows, columns = (_weights(corner[..., axis]) for axis in (0, 1))
    return np.round(rows @ images[:, None] @ columns.swapaxes(-1, -2)).astype(np.uint8)


def _weights(corner: np.ndarray) -> np.ndarray:
    """(N, T) -> (N, T, SIDE, DIGIT): how much of an image's line falls on each line of the frame."""
    distance = np.arange(SIDE)[:, None] - np.arange(DIGIT) - corner[..., None, None]
    return np.maximum(0, 1 - np.abs(distance))
