"""The task `pusht` of Diffusion Policy (extra `pusht`, gym-pusht): push a T-shaped block onto its place.

An episode succeeds when more than 95 % of the place is covered. The reward is the covered share over 0.95, at
most 1. There is no scripted expert.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from harness.environments.base import Environments, Singles, Task, installed, no_expert

SIDE, FIELD = 96, 512.0


class PushT:
    """The family `pusht`, and one environment of it."""

    def __init__(self) -> None:
        # Any: an environment of gym-pusht, which would open a sound device and greet otherwise.
        os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        self._env: Any = _module().PushTEnv(obs_type="state", observation_width=SIDE, observation_height=SIDE)
        self._seen, self._success = np.zeros(5), False
        self.task = Task(
            name="pusht",
            stages=("covered",),
            horizon=300,
            frames_per_second=10,
            state=("x", "y", "block_x", "block_y", "block_angle"),
            environment_state=(),
            actions=("x", "y"),
            low=(0.0, 0.0),
            high=(FIELD, FIELD),
            frame=(SIDE, SIDE, 3),
            expert=False,
            version=f"gym-pusht {version('gym-pusht')}, pymunk {version('pymunk')}",
        )

    @staticmethod
    def names() -> Mapping[str, str]:
        return {"": "Push a T-shaped block onto its place in the plane (extra pusht)."}

    @staticmethod
    def open(variant: str) -> Environments:
        return Singles(PushT)

    def reset(self, seed: int) -> None:
        self._seen, _ = self._env.reset(seed=seed)
        self._success = False

    def state(self) -> np.ndarray:
        return self._seen.astype(np.float32)

    def frame(self) -> np.ndarray:
        return np.ascontiguousarray(self._env._render())

    def step(self, action: np.ndarray) -> float:
        self._seen, reward, _, _, about = self._env.step(action)
        self._success = bool(about["is_success"])
        return float(reward)

    def stages(self) -> Sequence[bool]:
        return (self._success,)

    def expert(self) -> np.ndarray:
        raise no_expert(self.task)


# Any: the module of gym-pusht.
def _module() -> Any:
    installed("gym_pusht", "pusht")
    return importlib.import_module("gym_pusht.envs")
