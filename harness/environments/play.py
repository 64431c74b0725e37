"""Episodes of a task: environments that step together until each has succeeded or its time is over."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from harness.environments.base import BOTH, Environments, Task, check_actions


class Actor(Protocol):
    """Plans of actions for all environments at once."""

    chunk: int
    """Number of actions of a plan, all of which are executed before the next plan."""

    def plan(self, environments: Environments, step: int) -> np.ndarray:
        """Return actions (B, chunk, A) for the current states; `step` counts from 0."""
        ...


class Expert:
    """The scripted expert of a task, which plans one action at a time."""

    chunk = 1

    def plan(self, environments: Environments, step: int) -> np.ndarray:
        return environments.expert()[:, None]


@dataclass(frozen=True)
class Played:
    """The result of one episode."""

    seed: int
    success: bool
    steps: int
    """Steps until success, or the horizon."""
    stages: dict[str, int | None]
    """The first step after which each stage held, counted from 1; None if it never did."""
    largest_reward: float
    actions: str
    """16 hex digits of a sha256 over executed actions and rewards, equal for equal episodes."""


@dataclass(frozen=True)
class Moment:
    """One step of all environments: what was done in it, and for which rows it counts."""

    step: int
    actions: np.ndarray
    rewards: np.ndarray
    active: np.ndarray
    """True for the rows whose episode had not ended before this step."""
    succeeded: np.ndarray
    """True for the rows that have succeeded after it."""


def play(
    environments: Environments,
    seeds: Sequence[int],
    actor: Actor,
    before: Callable[[], None] = lambda: None,
    after: Callable[[Moment], None] = lambda _: None,
) -> Iterator[Played]:
    """Play an episode for each seed, and yield each when it ends; those that end together are in order.

    `before` is called before every step, when the environments can be observed, and `after` after it.
    """
    task = environments.task
    environments.reset(seeds)
    books, active = _Books(task, seeds), np.ones(len(seeds), dtype=bool)
    plan = np.empty((len(seeds), 0, len(task.actions)))
    for step in range(task.horizon):
        if step % actor.chunk == 0:
            plan = check_actions(actor.plan(environments, step), task)
        before()
        actions = plan[:, step % actor.chunk]
        rewards = environments.step(actions, active)
        succeeded = books.enter(step + 1, actions, rewards, environments.stages(), active)
        after(Moment(step, actions, rewards, active.copy(), succeeded))
        ended = active & (succeeded | (step + 1 == task.horizon))
        active &= ~ended
        yield from (books.result(row) for row in np.flatnonzero(ended).tolist())
        if not active.any():
            return


class _Books:
    """Results so far, a row for each episode."""

    def __init__(self, task: Task, seeds: Sequence[int]) -> None:
        self._task, self._seeds = task, seeds
        rows = len(seeds)
        self._succeeded = np.zeros(rows, dtype=bool)
        self._steps = np.zeros(rows, dtype=int)
        # 0 for a stage that has not held.
        self._first = np.zeros((rows, len(task.reported)), dtype=int)
        self._largest = np.full(rows, -np.inf)
        self._digests = [hashlib.sha256() for _ in seeds]

    def enter(
        self, step: int, actions: np.ndarray, rewards: np.ndarray, stages: np.ndarray, active: np.ndarray
    ) -> np.ndarray:
        """Enter a step of the active rows; return which rows have succeeded."""
        all_hold = stages.all(axis=1)
        holds = np.column_stack([stages, all_hold]) if BOTH in self._task.reported else stages
        self._first[(self._first == 0) & holds & active[:, None]] = step
        self._succeeded |= active & all_hold
        self._steps[active] = step
        self._largest[active] = np.maximum(self._largest, rewards)[active]
        for row in np.flatnonzero(active):
            self._digests[row].update(actions[row].tobytes() + np.float64(rewards[row]).tobytes())
        return self._succeeded.copy()

    def result(self, row: int) -> Played:
        firsts = self._first[row].tolist()
        stages = {name: step or None for name, step in zip(self._task.reported, firsts, strict=True)}
        return Played(
            seed=int(self._seeds[row]),
            success=bool(self._succeeded[row]),
            steps=int(self._steps[row]),
            stages=stages,
            largest_reward=float(self._largest[row]),
            actions=self._digests[row].hexdigest()[:16],
        )
