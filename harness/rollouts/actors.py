"""Actors of rollouts for checks: random actions, and recorded ones."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.environments.base import Environments, Task
from harness.environments.demonstrations import RECIPE, episode_file
from harness.environments.episode_file import ACTION
from harness.errors import UserError
from harness.files.files import read_text
from harness.files.parse import parse_json
from harness.runtime.random_streams import Streams
from metrics.files.parquet_files import bounded_table
from metrics.value import MetricError

RANDOM = "random_actions"


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
