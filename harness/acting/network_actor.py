"""A network's policy as an actor of episodes, on noise and starts that every arm of a comparison meets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, cast

import numpy as np

from harness.acting.policy import Observation, Policy
from harness.environments.base import Environments, Task
from harness.environments.demonstrations import MOST_EPISODES
from harness.errors import UserError
from harness.runtime.random_streams import Streams

FIRST, NOISE = MOST_EPISODES, 0
"""Seed of the first start, after those of all demonstrations, and the seed of the noise."""
BATCH = 50
"""Environments of a batch, on which the last bits of a network's output depend."""
STREAM = "rollout_noise"


class NetworkActor:
    """A policy whose noise depends only on a seed, the start and the number of the plan.

    All arms of a comparison meet the same noise. The network's batch always has the same number of rows, so
    an episode does not depend on which others are played.
    """

    def __init__(self, policy: Policy, seeds: Sequence[int], rows: int, noise: int) -> None:
        self.chunk = policy.chunk
        self._policy, self._streams = policy, Streams(noise)
        # Rows beyond the episodes repeat the first one.
        self._rows = np.arange(rows)
        self._rows[len(seeds) :] = 0
        self._seeds = np.asarray(seeds)

    def plan(self, environments: Environments, step: int) -> np.ndarray:
        # It may have more than the protocol names: the rest of a simulation's state.
        observation = cast(Observation, _Rows(environments.observe(), self._rows))
        name = f"{STREAM}/{step // self.chunk}"
        noise = self._streams.normal(name, self._seeds[self._rows], self._policy.noise_shape)
        actions = self._policy.act(observation, noise)
        return actions.detach().cpu().numpy()[: len(self._seeds)]


class _Rows(Mapping[str, np.ndarray]):
    """Some rows of an observation, taken when they are read: a policy may not need the frames."""

    def __init__(self, observation: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        self._all, self._rows = observation, rows

    def __getitem__(self, name: str) -> np.ndarray:
        return self._all[name][self._rows]

    def __contains__(self, name: object) -> bool:
        return name in self._all

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


class Acts(Protocol):
    """The facts about a policy, or about a robot's samples, that decide which tasks it can act in."""

    @property
    def action_size(self) -> int: ...
    @property
    def observes_frames(self) -> bool: ...


def check_policy(policy: Acts, task: Task) -> None:
    """Raise `UserError` if a policy's actions are not those of a task, or if it needs frames and there are
    none."""
    if policy.action_size != len(task.actions):
        raise UserError(
            f"the policy has {policy.action_size} numbers in an action, but task '{task.name}' takes "
            f"{len(task.actions)} ({', '.join(task.actions)}); fine-tune on demonstrations of this task"
        )
    if policy.observes_frames and not task.frame[0]:
        raise UserError(
            f"the policy observes frames, but task '{task.name}' draws none on this machine; install OSMesa "
            "(apt install libosmesa6) or EGL (apt install libegl1), or fine-tune with --set "
            "data.image_key=none"
        )


def batches(first: int, count: int, batch: int) -> list[range]:
    """Return the seeds of each batch.

    >>> batches(100, 5, 3)
    [range(100, 103), range(103, 105)]
    """
    return [range(first + begin, first + min(begin + batch, count)) for begin in range(0, count, batch)]
