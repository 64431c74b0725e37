"""The seam of simulated tasks: environments that step together, observed as frames and states.

A registered family makes environments by the name of a task, for example `metaworld:drawer-open-v3`. The
start of an environment is a pure function of its seed, and each step one of its state and action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from harness.config import registry
from harness.errors import UserError, unknown
from metrics.files.media import package
from metrics.value import MetricError

# `image` uint8 (B, H, W, 3), empty if the task draws no frames, and `state` float32 (B, S). Tasks whose state
# is only the robot's own also have `environment_state` float32 (B, E), the rest of the simulation.
Observation = Mapping[str, np.ndarray]
BOTH = "both"
"""The stage of a task with several stages in which all hold at once."""


@dataclass(frozen=True)
class Task:
    """The facts about a task that policies, demonstrations and rollouts need."""

    name: str
    stages: tuple[str, ...]
    """Names of the stages, in their usual order. The task succeeds when all hold at one step."""
    horizon: int
    """Steps after which an episode fails."""
    frames_per_second: int
    state: tuple[str, ...]
    """Names of the numbers of the state."""
    environment_state: tuple[str, ...]
    """Names of the numbers of the simulation that are not in the state; empty if it has all."""
    actions: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    """Smallest and largest action; others are clipped."""
    frame: tuple[int, int, int]
    """Height, width and 3 of a frame; (0, 0, 3) if the task draws none."""
    expert: bool
    """True if the task has a scripted expert."""
    version: str
    """Version of the simulation. Another version may give other states for the same actions."""

    @property
    def reported(self) -> tuple[str, ...]:
        """Names of the stages whose success is reported."""
        return (*self.stages, BOTH) if len(self.stages) > 1 else self.stages


class Environments(Protocol):
    """Environments of one task that step together. Each row is independent of the others."""

    task: Task

    def reset(self, seeds: Sequence[int]) -> None:
        """Begin one episode for each seed."""
        ...

    def observe(self) -> Observation:
        """Return the observation of every environment."""
        ...

    def step(self, actions: np.ndarray, active: np.ndarray) -> np.ndarray:
        """Apply actions (B, A) to the active environments (B,); return rewards (B,), 0 for the others."""
        ...

    def stages(self) -> np.ndarray:
        """Return which stages hold now, bool (B, stages)."""
        ...

    def expert(self) -> np.ndarray:
        """Return the scripted expert's actions (B, A) for the current states."""
        ...


class Environment(Protocol):
    """A single environment, for simulators that step one at a time; the methods are those of a row.

    `state` is the simulation's own, and `frame` is empty if none can be drawn.
    """

    task: Task

    def reset(self, seed: int) -> None: ...
    def state(self) -> np.ndarray: ...
    def frame(self) -> np.ndarray: ...
    def step(self, action: np.ndarray) -> float: ...
    def stages(self) -> Sequence[bool]: ...
    def expert(self) -> np.ndarray: ...


class Drawn(Mapping[str, np.ndarray]):
    """An observation whose frames are drawn when they are read, before the next step."""

    def __init__(self, states: Observation, draw: Callable[[], np.ndarray]) -> None:
        self._states, self._draw = states, draw

    def __getitem__(self, name: str) -> np.ndarray:
        return self._draw() if name == "image" else self._states[name]

    def __contains__(self, name: object) -> bool:
        return name == "image" or name in self._states

    def __iter__(self) -> Iterator[str]:
        return iter(("image", *self._states))

    def __len__(self) -> int:
        return 1 + len(self._states)


class Singles:
    """Environments that are stepped one after the other. Of those that have ended, the last frame is kept."""

    def __init__(self, make: Callable[[], Environment]) -> None:
        self._make = make
        self._made = [make()]
        self._rows: list[Environment] = []
        # None for a frame that is no longer that of the state.
        self._frames: list[np.ndarray | None] = []
        self.task = self._made[0].task

    def reset(self, seeds: Sequence[int]) -> None:
        self._made += [self._make() for _ in range(len(seeds) - len(self._made))]
        self._rows, self._frames = self._made[: len(seeds)], [None] * len(seeds)
        for one, seed in zip(self._rows, seeds, strict=True):
            one.reset(seed)

    def observe(self) -> Observation:
        return Drawn({"state": np.stack([one.state() for one in self._rows])}, self._draw)

    def step(self, actions: np.ndarray, active: np.ndarray) -> np.ndarray:
        actions, rewards = check_actions(actions, self.task), np.zeros(len(self._rows))
        for row in np.flatnonzero(active):
            rewards[row] = self._rows[row].step(actions[row])
            self._frames[row] = None
        return rewards

    def stages(self) -> np.ndarray:
        return np.array([one.stages() for one in self._rows], dtype=bool)

    def expert(self) -> np.ndarray:
        return np.stack([one.expert() for one in self._rows])

    def _draw(self) -> np.ndarray:
        for row, one in enumerate(self._rows):
            if self._frames[row] is None:
                self._frames[row] = one.frame()
        return np.stack([frame for frame in self._frames if frame is not None])


class Family(Protocol):
    """Tasks of one simulator."""

    @staticmethod
    def names() -> Mapping[str, str]:
        """Return a line of description by the part of the name after `:`, empty for the family's name."""
        ...

    @staticmethod
    def open(variant: str) -> Environments:
        """Return the environments of a task of `names`.

        Raises `UserError` with the command that installs the simulator if it is missing.
        """
        ...


def task_names() -> dict[str, str]:
    """Return a line of description of every task by its name, those of missing packages included."""
    return {
        _full(family, variant): text
        for family in registry.names("task")
        for variant, text in registry.load("task", family).names().items()
    }


def open_task(name: str) -> Environments:
    """Return the environments of a task; raises `UserError` for an unknown name or a missing package."""
    check_task(name)
    family, _, variant = name.partition(":")
    return registry.load("task", family).open(variant)


def check_task(name: str) -> None:
    """Raise `UserError` for an unknown task; its package may be missing."""
    family, _, variant = name.partition(":")
    known = family in registry.names("task") and not name.endswith(":")
    if not known or variant not in registry.load("task", family).names():
        raise unknown("task", name, task_names(), see="flowrace list tasks")


def _full(family: str, variant: str) -> str:
    return f"{family}:{variant}" if variant else family


def installed(name: str, extra: str) -> None:
    """Import the package of a simulator. Raises `UserError` with the command that installs it."""
    try:
        package(name, extra)
    except MetricError as error:
        raise UserError(str(error)) from error


def no_expert(task: Task, instead: str = "give a run, random or replay:DEMOS") -> UserError:
    """Return the error of a task without a scripted expert."""
    return UserError(f"task '{task.name}' has no scripted expert; {instead}")


def check_actions(actions: np.ndarray, task: Task) -> np.ndarray:
    """Return actions float64 within the task's limits, rounded to float32, in which they are stored.

    Checked actions are unchanged by another check. Raises `UserError` for actions of another width, and for
    ones without a number.
    """
    if actions.shape[-1] != len(task.actions):
        raise UserError(
            f"task '{task.name}' takes {len(task.actions)} numbers in an action ({', '.join(task.actions)}), "
            f"but got {actions.shape[-1]}; give a policy or demonstrations of this task"
        )
    if not np.isfinite(actions).all():
        raise UserError(
            f"an action for task '{task.name}' is not a finite number; the weights or the demonstrations are "
            "damaged"
        )
    low, high = (np.array(ends, dtype=np.float32) for ends in (task.low, task.high))
    rounded = np.clip(actions.astype(np.float64), low, high).astype(np.float32)
    return rounded.astype(np.float64)
