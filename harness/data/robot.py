"""The layout of a robot's samples: an observation, the frames that follow it, and a chunk of actions.

State and actions are scaled by the 1 % and the 99 % quantile of the training steps, to -1 and 1 (Self-Flow
App. E; its gripper is not scaled, and here a gripper with two positions has them at -1 and 1). A run stores
its layout, because a policy needs it and not the demonstrations.

    S  numbers of a state    A  numbers of an action    H  actions of a chunk    F  frames
"""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.data.dataset import Sample

FILE = "policy.json"
"""The file of a run directory with the layout."""
QUANTILES = (0.01, 0.99)
CONSTANT = 1e-6
"""Half of a range, relative to its centre or to 1, up to which a number is constant; float32 has less."""
CHUNK = 6
"""Actions of a chunk (Self-Flow App. E)."""
Axis = Annotated[int, Field(ge=1, le=2**16)]


class Scale(BaseModel):
    """The quantiles of each number of a vector, which become -1 and 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: tuple[float, ...]
    high: tuple[float, ...]

    @model_validator(mode="after")
    def _has_pairs(self) -> Self:
        if len(self.low) != len(self.high) or any(a > b for a, b in zip(self.low, self.high, strict=False)):
            raise ValueError("every lower quantile has a higher one")
        return self

    @classmethod
    def of(cls, values: np.ndarray) -> Scale:
        """Return the scale of training values, (N, size)."""
        low, high = np.quantile(values.astype(np.float64), QUANTILES, axis=0)
        return cls(low=tuple(low.tolist()), high=tuple(high.tolist()))

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Return values (..., size) in the network's units, float32; a constant number becomes 0."""
        centre, half = self._centre_and_half()
        return ((values - centre) / half).astype(np.float32)

    def restored(self, values: np.ndarray) -> np.ndarray:
        """Return values (..., size) in the environment's units, float32."""
        centre, half = self._centre_and_half()
        return (values * half + centre).astype(np.float32)

    def _centre_and_half(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = np.array(self.low), np.array(self.high)
        centre, half = (low + high) / 2, (high - low) / 2
        return centre, np.where(half > CONSTANT * np.maximum(1.0, np.abs(centre)), half, 1.0)


class RobotLayout(BaseModel):
    """The parts of a robot's sample, and what a policy needs to read observations and to return actions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: str = ""
    """The task of the demonstrations; empty if they do not state one."""
    image: tuple[Axis, Axis, Axis] | None = None
    """(channels, height, width) of a frame; None without images."""
    frames: Axis = 1
    """F: the current frame and those that follow it."""
    chunk: Axis = CHUNK
    """H."""
    state: Scale | None = None
    """None without a state."""
    action: Scale
    with_environment: bool = False
    """True if the state of the environment follows that of the robot, as in data without images."""

    @model_validator(mode="after")
    def _has_an_observation(self) -> Self:
        if (self.image is None and self.state is None) or not self.action.low:
            raise ValueError("a policy observes an image or a state, and has actions")
        return self

    @property
    def action_size(self) -> int:
        return len(self.action.low)

    @property
    def observes_frames(self) -> bool:
        return self.image is not None

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """The shape of each part by its kind, in the order of a sample."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.image is not None:
            channels, height, width = self.image
            shapes["video"] = (channels, self.frames, height, width)
        if self.state is not None:
            shapes["state"] = (len(self.state.low), 1)
        return shapes | {"action": (len(self.action.low), self.chunk)}


class Outline:
    """The shapes of a robot's samples, for a network without the demonstrations."""

    modality, classes, fingerprint = "robot", 1, ""

    def __init__(self, robot: RobotLayout) -> None:
        self.robot, self.kinds = robot, tuple(robot.parts)
        self.shape, *beside = robot.parts.values()
        self.beside = tuple(beside)

    def __len__(self) -> int:
        return 0

    def sample(self, index: int) -> Sample:
        raise IndexError(index)

    def key(self, index: int) -> bytes:
        raise IndexError(index)
