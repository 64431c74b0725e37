"""The geometry of `open-and-place`: positions and sizes on the table, which is the unit square."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CABINET = 0.75
"""y of the cabinet's front; the cabinet reaches the far edge."""
STROKE = 0.3
"""Largest opening of the drawer."""
WIDTH, DEPTH = 0.36, 0.05
"""Width of the drawer, and depth of its front board."""
HANDLE = 0.03
"""Distance of the handle from the front board."""
BLOCK = 0.1
"""Side of the block."""
INSIDE = 0.13
"""Largest distance of a block's centre from the drawer's middle, across, so that it is within the walls."""


@dataclass
class Scene:
    """The state of environments, one entry of each array for each."""

    x: np.ndarray
    y: np.ndarray
    """Position of the gripper."""
    closed: np.ndarray
    held: np.ndarray
    """0 if the gripper holds nothing, 1 for the handle, 2 for the block."""
    cabinet: np.ndarray
    """x of the middle of cabinet, drawer and handle."""
    opening: np.ndarray
    block_x: np.ndarray
    block_y: np.ndarray
    inside: np.ndarray
    """True for a block in the drawer that is not held."""

    @classmethod
    def empty(cls, count: int) -> Scene:
        """Return scenes whose numbers are all 0."""
        x, y, cabinet, opening, block_x, block_y = (np.zeros(count) for _ in range(6))
        closed, inside = (np.zeros(count, dtype=bool) for _ in range(2))
        held = np.zeros(count, dtype=np.int64)
        return cls(x, y, closed, held, cabinet, opening, block_x, block_y, inside)


def front(scene: Scene) -> np.ndarray:
    """Return the y of the near side of the drawer's front board."""
    return CABINET - DEPTH - scene.opening


def handle_y(scene: Scene) -> np.ndarray:
    """Return the y of the handle."""
    return front(scene) - HANDLE


def middle_y(scene: Scene) -> np.ndarray:
    """Return the y of the middle of the drawer's open part."""
    return CABINET - 0.5 * scene.opening
