"""Frames of `open-and-place`: rectangles, drawn one over the other with smooth edges."""

from __future__ import annotations

import numpy as np

from harness.environments.open_and_place_scene import (
    BLOCK,
    CABINET,
    DEPTH,
    HANDLE,
    WIDTH,
    Scene,
    front,
    handle_y,
)

SIDE = 32
TABLE, BOX, FLOOR, BOARD = (70, 70, 80), (130, 90, 50), (25, 25, 30), (185, 135, 80)
KNOB, CUBE, OPEN_FINGERS, CLOSED_FINGERS = (250, 220, 40), (230, 40, 40), (240, 240, 240), (60, 220, 230)
FINGER, SPREAD, SQUEEZE = (0.03, 0.1), 0.065, 0.04
"""Width and length of a finger, and the distances of open and closed fingers from the gripper's middle."""


def draw(scene: Scene) -> np.ndarray:
    """Return frames uint8 (B, SIDE, SIDE, 3); the top row is the far edge of the table."""
    canvas = np.empty((len(scene.x), 3, SIDE, SIDE), dtype=np.float32)
    canvas[:] = np.array(TABLE, dtype=np.float32)[:, None, None]
    middle, near, handle = scene.cabinet, front(scene), handle_y(scene)
    half = np.where(scene.closed, SQUEEZE, SPREAD)
    colour = np.where(scene.closed[:, None], CLOSED_FINGERS, OPEN_FINGERS)
    _box(canvas, middle, (near + CABINET) / 2, WIDTH, CABINET - near, FLOOR)
    _box(canvas, scene.block_x, scene.block_y, BLOCK * scene.inside, BLOCK * scene.inside, CUBE)
    _box(canvas, middle, np.full_like(middle, (CABINET + 1) / 2), WIDTH + 0.06, 1 - CABINET, BOX)
    _box(canvas, middle, near + DEPTH / 2, WIDTH, DEPTH, BOARD)
    _box(canvas, middle, handle, 0.1, 2 * HANDLE, KNOB)
    _box(canvas, scene.block_x, scene.block_y, BLOCK * ~scene.inside, BLOCK * ~scene.inside, CUBE)
    for side in (-half, half):
        _box(canvas, scene.x + side, scene.y, *FINGER, colour)
    return (canvas + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)


def _box(
    canvas: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    width: float | np.ndarray,
    height: float | np.ndarray,
    colour: object,
) -> None:
    """Draw a rectangle around (x, y) in each frame. A pixel is covered by the share of its area."""
    paint = np.broadcast_to(np.asarray(colour, dtype=np.float32), (len(x), 3))[:, :, None, None]
    covered = _covered(1 - y, height)[:, :, None] * _covered(x, width)[:, None, :]
    canvas += covered[:, None].astype(np.float32) * (paint - canvas)


def _covered(centre: np.ndarray, length: float | np.ndarray) -> np.ndarray:
    """Return the share of each pixel that an interval covers, (B, SIDE)."""
    pixels = np.arange(SIDE)
    half = np.asarray(length) / 2
    low, high = (centre - half) * SIDE, (centre + half) * SIDE
    ends = np.minimum(high[:, None], pixels + 1) - np.maximum(low[:, None], pixels)
    return np.clip(ends, 0.0, 1.0)
