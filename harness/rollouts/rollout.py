"""Rollouts: episodes of a policy at fixed starts, in batches of environments, recorded one by one.

Episode i begins at the start of seed `FIRST` + i, for every policy. A batch that was interrupted is played
again; the episodes that are recorded already are not added twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from harness.acting.network_actor import BATCH, FIRST, NOISE, NetworkActor, batches, check_policy
from harness.acting.policy import Policy
from harness.environments.base import Environments, Task, no_expert
from harness.environments.play import Actor, Expert, play
from harness.records.rollouts import Conditions, Episode, Rollout, read_rollout, recording
from harness.rollouts.actors import RandomActor, ReplayActor, actions_digest, check_demos
from metrics.intervals import of_replicates, share
from metrics.value import Value

Actors = Callable[[Sequence[int]], Actor]
"""A function from the seeds of the episodes to what acts in them."""


@dataclass(frozen=True)
class Acting:
    """An actor of rollouts, and the first start."""

    name: str
    """Its identity, for the record."""
    actors: Actors
    first: int = FIRST
    device: str = ""
    """Kind of device of a network; empty without one."""


def expert_acting(task: Task) -> Acting:
    """Return the task's scripted expert. Raises `UserError` if it has none."""
    if not task.expert:
        raise no_expert(task)
    return Acting("expert", lambda seeds: Expert())


def random_acting(task: Task) -> Acting:
    """Return uniform actions."""
    return Acting("random", lambda seeds: RandomActor(task, seeds, NOISE))


def replay_acting(task: Task, demos: Path) -> Acting:
    """Return the recorded actions of demonstrations, at their starts.

    They are identified by their hash. Raises `UserError` if the folder holds none of the task.
    """
    check_demos(demos, task)
    return Acting(f"replay/{actions_digest(demos)}", lambda seeds: ReplayActor(demos, task, seeds), first=0)


def policy_acting(policy: Policy, name: str, task: Task, batch: int) -> Acting:
    """Return a network's policy.

    Raises `UserError` if its actions are not those of the task, or if it needs frames and the task has none.
    """
    check_policy(policy, task)
    actors = lambda seeds: NetworkActor(policy, seeds, batch, NOISE)  # noqa: E731
    return Acting(name, actors, device=policy.device_kind)


def conditions_of(task: Task, acting: Acting, batch: int) -> Conditions:
    return Conditions(
        task=task.name,
        version=task.version,
        stages=task.reported,
        horizon=task.horizon,
        policy=acting.name,
        first=acting.first,
        noise=NOISE,
        batch=batch,
        device=acting.device,
    )


def folder_name(task: Task, acting: Acting, batch: int) -> str:
    """Return the name of the folder of a rollout's record: the task, and a hash of its conditions."""
    return f"{task.name.replace(':', '-')}-{conditions_of(task, acting, batch).key}"


def roll_out(
    environments: Environments,
    acting: Acting,
    count: int,
    folder: Path,
    batch: int = BATCH,
    advance: Callable[[int], None] = lambda _: None,
) -> Rollout:
    """Play the missing ones of `count` episodes; return the record of the first `count`."""
    conditions = conditions_of(environments.task, acting, batch)
    with recording(folder, conditions) as record:
        for seeds in batches(acting.first, count, batch):
            if all(seed in record for seed in seeds):
                advance(len(seeds))
                continue
            for played in play(environments, seeds, acting.actors(seeds)):
                record.add(Episode(**asdict(played)))
                advance(1)
    return first_of(read_rollout(folder), count)


def first_of(rollout: Rollout, count: int) -> Rollout:
    """Return the record of the first `count` starts. An earlier command may have played more."""
    return Rollout(rollout.conditions, rollout.episodes[:count])


@dataclass(frozen=True)
class Results:
    """Shares of episodes with their Wilson intervals, and the mean of the largest rewards."""

    success: Value
    stages: dict[str, Value]
    largest_reward: Value


@dataclass(frozen=True)
class RolledOut:
    """A rollout with the folder of its record."""

    folder: Path
    rollout: Rollout
    results: Results


def results_of(rollout: Rollout) -> Results:
    """Return the results of at least one episode."""
    episodes = rollout.episodes
    n = len(episodes)

    def shared(holds: Callable[[Episode], bool]) -> Value:
        return share(np.array([holds(episode) for episode in episodes]), n)

    stages = {
        name: shared(lambda episode, name=name: episode.stages[name] is not None)
        for name in rollout.conditions.stages
    }
    rewards = of_replicates([episode.largest_reward for episode in episodes], n)
    return Results(shared(lambda episode: episode.success), stages, rewards)
