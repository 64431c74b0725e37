"""Actors of rollouts: a network's policy on fixed noise, and policies for checks."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from harness.environments.base import Environments, Task
from harness.environments.demonstrations import RECIPE, episode_file
from harness.environments.episode_file import ACTION
from harness.errors import UserError
from harness.files.files import read_text
from harness.files.parse import parse_json
from harness.policy.base import Observation, Policy
from harness.runtime.random_streams import Streams
from metrics.files.parquet_files import bounded_table
from metrics.value import MetricError

NOISE, RANDOM = "rollout_noise", "random_actions"


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
        name = f"{NOISE}/{step // self.chunk}"
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


class RandomActor:
    """Uniform actions within the task's limits, which depend only on a seed, the start and the step."""

    chunk = 1

    def __init__(self, task: Task, seeds: Sequence[int], noise: int) -> None:
        self._streams, self._seeds = Streams(noise), seeds
        self._low, self._high = np.array(task.low), np.array(task.high)

    def plan(self, environments: Environments, step: int) -> np.ndarray:
        drawn = self._streams.uniform(f"{RANDOM}/{step}", self._seeds, (1, len(self._low))).numpy()
        return self._low + (self._high - self._low) * drawn


class ReplayActor:
    """The recorded actions of demonstrations, and then no movement."""

    chunk = 1

    def __init__(self, demos: Path, task: Task, seeds: Sequence[int]) -> None:
        self._actions = [recorded_actions(demos, seed) for seed in seeds]
        self._rest = np.zeros(len(task.actions))

    def plan(self, environments: Environments, step: int) -> np.ndarray:
        now = [actions[step] if step < len(actions) else self._rest for actions in self._actions]
        return np.stack(now)[:, None]


def recorded_actions(demos: Path, index: int) -> np.ndarray:
    """Return the actions (T, A) of a recorded episode.

    Raises `UserError` if there is no such episode, or it has no actions.
    """
    file = episode_file(demos, index)
    if not file.is_file():
        raise UserError(f"{demos} has no episode {index}; give a smaller -n, or record more episodes")
    try:
        rows = bounded_table(file, [ACTION]).column(0).to_pylist()
        actions = np.array(rows, dtype=np.float64)
    except (MetricError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} has no actions: {error}") from error
    if actions.ndim != 2:
        raise UserError(f"{file} has no actions; record the demonstrations again")
    return actions


def actions_digest(demos: Path) -> str:
    """Return 16 hex digits of a sha256 over the recorded actions of all episodes."""
    total = hashlib.sha256()
    for index in itertools.takewhile(lambda index: episode_file(demos, index).is_file(), itertools.count()):
        actions = recorded_actions(demos, index)
        total.update(f"{actions.shape}".encode() + actions.tobytes())
    return total.hexdigest()[:16]


def check_demos(demos: Path, task: Task) -> None:
    """Raise `UserError` unless a folder holds demonstrations of a task and its version."""
    try:
        found = parse_json(read_text(demos / RECIPE, "JSON"))
        of = found["task"], found["version"]
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"replay:{demos}: expected a folder that flowrace data demos has written: {error}"
        ) from error
    if of != (task.name, task.version):
        raise UserError(
            f"replay:{demos} holds demonstrations of {json.dumps(of)}, not of task '{task.name}', version "
            f"'{task.version}'"
        )
