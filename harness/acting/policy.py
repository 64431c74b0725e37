"""The protocol of a policy, which rollouts call.

B  observations    H  actions of a chunk    A  numbers of an action    S  numbers of a state
"""

from __future__ import annotations

from typing import Protocol, TypedDict

import numpy as np
from torch import Tensor


class Observation(TypedDict):
    """Observations of B robots at one step, in the units of their environment."""

    image: Tensor | np.ndarray
    """(B, H, W, 3) uint8."""
    state: Tensor | np.ndarray
    """(B, S) float, the proprioceptive state."""


class Policy(Protocol):
    """A function from observations and noise to chunks of actions."""

    @property
    def chunk(self) -> int:
        """Number of actions that one call returns."""
        ...

    @property
    def action_size(self) -> int:
        """Number of numbers of an action."""
        ...

    @property
    def observes_frames(self) -> bool:
        """Return whether `act` reads the image of an observation."""
        ...

    @property
    def device_kind(self) -> str:
        """Kind of device that actions are computed on, for example `cpu` or `cuda`."""
        ...

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one observation."""
        ...

    def act(self, observation: Observation, noise: Tensor) -> Tensor:
        """Return actions (B, chunk, action_size) float32 in the environment's units.

        `noise` is standard normal, (B, *noise_shape). Equal observations and noise give equal actions. Raises
        `UserError` for an image or a state of another size than that of the demonstrations.
        """
        ...
