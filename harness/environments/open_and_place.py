"""The embedded task `open-and-place`: a gripper pulls a drawer open and places a block in it.

The table is the unit square, seen from above: x to the right, y away from the robot. A cabinet is at its far
edge. Its drawer comes out towards the robot by the opening d. An action (dx, dy, grip) moves the gripper, and
closes it where grip > 0. On closing it takes hold of the nearer of handle and block within `REACH`. A held
handle moves the drawer, and only along y. A held block moves with the gripper. A block that is let go within
the open part of the drawer is inside, and then moves with the drawer, even into the cabinet.

Only sums, products, comparisons and bounds are computed, each correctly rounded. So the same actions give the
same states on every machine, and whatever the number of environments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from harness.environments.base import Environments, Observation, Task, check_actions
from harness.environments.open_and_place_frames import draw
from harness.environments.open_and_place_scene import (
    CABINET,
    DEPTH,
    INSIDE,
    STROKE,
    Scene,
    front,
    handle_y,
    middle_y,
)

SPEED = 0.04
"""Largest move of the gripper in a step, along x and along y."""
REACH = 0.06
"""Largest distance along x and y of what a closing gripper takes hold of."""
OPENED = 0.8
"""Share of the stroke from which the drawer counts as open."""
PULLED = 0.96
"""Share of the stroke to which the expert pulls."""
NEAR, CENTRED = 0.015, 0.02
"""Distance from which the expert closes the gripper, and from the drawer's middle, opens it."""
NOTHING, HOLDS_HANDLE, HOLDS_BLOCK = 0, 1, 2
HORIZONS = {"": 120, "open": 50, "place": 80}
STAGES = {"": ("opened", "placed"), "open": ("opened",), "place": ("placed",)}
VERSION = "1"


class OpenAndPlace:
    """Environments of `open-and-place`, or of one of its stages, as arrays with a row for each."""

    def __init__(self, variant: str = "") -> None:
        self.variant = variant
        self.task = Task(
            name="open-and-place" + (f":{variant}" if variant else ""),
            stages=STAGES[variant],
            horizon=HORIZONS[variant],
            frames_per_second=10,
            state=("x", "y", "closed", "holds"),
            environment_state=("opening", "handle_x", "handle_y", "block_x", "block_y"),
            actions=("dx", "dy", "grip"),
            low=(-SPEED, -SPEED, -1.0),
            high=(SPEED, SPEED, 1.0),
            frame=(32, 32, 3),
            expert=True,
            version=VERSION,
        )
        self.scene = Scene.empty(0)

    @staticmethod
    def names() -> Mapping[str, str]:
        return {
            "": "Pull a drawer open and place a block in it; embedded, 32x32 frames.",
            "open": "The first stage alone: pull the drawer open.",
            "place": "The second stage alone: place the block in the open drawer.",
        }

    @staticmethod
    def open(variant: str) -> Environments:
        return OpenAndPlace(variant)

    def reset(self, seeds: Sequence[int]) -> None:
        # It imports torch, which a list of tasks does without.
        from harness.runtime.random_streams import Streams

        drawn = Streams(0).uniform("environment/open-and-place", seeds, (5,)).numpy().astype(np.float64)
        scene = Scene.empty(len(seeds))
        scene.cabinet[:] = 0.25 + 0.5 * drawn[:, 0]
        scene.x[:], scene.y[:] = 0.1 + 0.8 * drawn[:, 1], 0.35 + 0.1 * drawn[:, 2]
        scene.block_x[:], scene.block_y[:] = 0.1 + 0.8 * drawn[:, 3], 0.08 + 0.17 * drawn[:, 4]
        if self.variant == "place":
            scene.opening[:] = PULLED * STROKE
        self.scene = scene

    def observe(self) -> Observation:
        scene = self.scene
        own = (scene.x, scene.y, scene.closed, scene.held != NOTHING)
        others = (scene.opening, scene.cabinet, handle_y(scene), scene.block_x, scene.block_y)
        states = (np.stack(columns, axis=1).astype(np.float32) for columns in (own, others))
        return {"image": draw(scene), **dict(zip(("state", "environment_state"), states, strict=True))}

    def step(self, actions: np.ndarray, active: np.ndarray) -> np.ndarray:
        actions, scene = check_actions(actions, self.task), self.scene
        closing = actions[:, 2] > 0
        scene.held[:] = np.where(active, self._held(closing), scene.held)
        scene.closed[:] = np.where(active, closing, scene.closed)
        self._move(np.where(active[:, None], actions[:, :2], 0.0))
        inside = (scene.held != HOLDS_BLOCK) & (scene.inside | within(scene))
        scene.inside[:] = np.where(active, inside, scene.inside)
        return np.where(active, self._rewards(), 0.0)

    def stages(self) -> np.ndarray:
        holds = {"opened": self.scene.opening >= OPENED * STROKE, "placed": placed(self.scene)}
        return np.stack([holds[name] for name in self.task.stages], axis=1)

    def expert(self) -> np.ndarray:
        """Return the actions of the expert, which depend only on the current state."""
        scene = self.scene
        x, y, grip = _expert_targets(scene, opens="opened" in self.task.stages)
        moves = [np.clip(target - now, -SPEED, SPEED) for target, now in ((x, scene.x), (y, scene.y))]
        return np.stack([*moves, grip], axis=1)

    def _held(self, closing: np.ndarray) -> np.ndarray:
        """Return what grippers hold after this command, before they move."""
        scene = self.scene
        handle = distance(scene, scene.cabinet, handle_y(scene))
        # A block in the closed part of the drawer is out of reach.
        shut = scene.inside & (scene.block_y > CABINET)
        block = np.where(shut, np.inf, distance(scene, scene.block_x, scene.block_y))
        nearer = np.where(handle <= block, HOLDS_HANDLE, HOLDS_BLOCK)
        taken = np.where(np.minimum(handle, block) <= REACH, nearer, NOTHING)
        # A gripper that is closed already takes hold of nothing new.
        return np.where(closing, np.where(scene.closed, scene.held, taken), NOTHING)

    def _move(self, moves: np.ndarray) -> None:
        """Move grippers, and with them what they hold, as far as the table and the drawer allow."""
        scene = self.scene
        pulls, carries = scene.held == HOLDS_HANDLE, scene.held == HOLDS_BLOCK
        opening = np.clip(scene.opening - np.where(pulls, moves[:, 1], 0.0), 0.0, STROKE)
        drawn = scene.opening - opening
        # A block in the drawer moves with it.
        scene.block_y += np.where(scene.inside, drawn, 0.0)
        x = np.where(pulls, scene.x, np.clip(scene.x + moves[:, 0], 0.0, 1.0))
        y = np.where(pulls, scene.y + drawn, np.clip(scene.y + moves[:, 1], 0.0, 1.0))
        scene.block_x += np.where(carries, x - scene.x, 0.0)
        scene.block_y += np.where(carries, y - scene.y, 0.0)
        scene.x[:], scene.y[:], scene.opening[:] = x, y, opening

    def _rewards(self) -> np.ndarray:
        """Return the mean progress of the stages, from 0 to 1."""
        progress = {
            "opened": np.minimum(self.scene.opening / (OPENED * STROKE), 1.0),
            "placed": placed(self.scene).astype(np.float64),
        }
        total = sum((progress[name] for name in self.task.stages), np.zeros(len(self.scene.x)))
        return total / len(self.task.stages)


def distance(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance of grippers from points, the larger one of x and y."""
    return np.maximum(np.abs(scene.x - x), np.abs(scene.y - y))


def within(scene: Scene) -> np.ndarray:
    """Return whether the centre of the block is within the open part of the drawer."""
    across = np.abs(scene.block_x - scene.cabinet) <= INSIDE
    return across & (scene.block_y >= front(scene) + DEPTH) & (scene.block_y <= CABINET)


def placed(scene: Scene) -> np.ndarray:
    """Return whether the block is in the drawer's open part and not held."""
    return scene.inside & within(scene)


def _expert_targets(scene: Scene, *, opens: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the points to which grippers should move, and their grips."""
    shut = scene.opening < PULLED * STROKE if opens else np.zeros(len(scene.x), dtype=bool)
    pulls, carries = scene.held == HOLDS_HANDLE, scene.held == HOLDS_BLOCK
    free = ~pulls & ~carries
    middle = distance(scene, scene.cabinet, middle_y(scene))
    at_handle = distance(scene, scene.cabinet, handle_y(scene)) <= NEAR
    at_block = distance(scene, scene.block_x, scene.block_y) <= NEAR
    # First match: pull, let go of what is held too early or too long, reach for the handle, carry, reach for
    # the block; a gripper whose block is inside rests.
    cases = [
        (shut & pulls, scene.x, scene.y - 1, True),
        (pulls | (shut & carries), scene.x, scene.y, False),
        (shut & free & ~scene.closed & at_handle, scene.cabinet, handle_y(scene), True),
        (shut & free, scene.cabinet, handle_y(scene), False),
        (carries & (middle <= CENTRED), scene.x, scene.y, False),
        (carries, scene.cabinet, middle_y(scene), True),
        (scene.inside, scene.x, scene.y, False),
        (~scene.closed & at_block, scene.block_x, scene.block_y, True),
    ]
    conditions = [case[0] for case in cases]
    x = np.select(conditions, [case[1] for case in cases], scene.block_x)
    y = np.select(conditions, [case[2] for case in cases], scene.block_y)
    return x, y, np.select(conditions, [1.0 if case[3] else -1.0 for case in cases], -1.0)
