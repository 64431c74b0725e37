"""The success of a policy in closed loop, `success@TASK`: the share of episodes in which it solves the task.

An evaluation plays `eval.samples` episodes. Episode i begins at start `FIRST` + i, and its noise depends only
on the start and the number of the plan, so every arm and every step meets the same ones. The episodes are
those of `flowrace rollout RUN --task TASK`, bit for bit on one kind of device. Stages are recorded too, for
example `success@open-and-place/opened`, and the result at each start, with which two arms are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from harness.acting.network_actor import BATCH, FIRST, NOISE, NetworkActor, batches, check_policy
from harness.acting.network_policy import NetworkPolicy
from harness.backbone.network import Backbone
from harness.config.evaluation_spec import EvalSpec
from harness.data.dataset import Capabilities, Dataset
from harness.data.robot import RobotLayout
from harness.environments.base import Task, open_task
from harness.environments.play import Played, play
from harness.errors import UserError
from harness.flow.samplers import Rule
from harness.records.evaluations import SUCCESS
from metrics import MetricError, Value
from metrics.intervals import share


class Successes(NamedTuple):
    """A share of episodes with Wilson's interval, and the result at each start."""

    value: Value
    by_start: str
    """`1` for success and `0` for failure, in the order of the starts."""


class TaskSuccess:
    """The metric `success@TASK` of one run.

    Every rank plays all episodes, because a sharded network needs the same passes on every rank. Raises
    `UserError` for an unknown task, for one that is not installed, and for data with other actions.
    """

    def __init__(self, name: str, spec: EvalSpec, dataset: Dataset, device: torch.device, rule: Rule) -> None:
        able = Capabilities(dataset)
        self.name, self.spec = name, spec
        self.environments = open_task(name.removeprefix(SUCCESS))
        self._policy = lambda model: NetworkPolicy(model, able.robot, spec, device, able.resizes, rule)
        task = self.environments.task
        check_policy(able.robot, task)
        check_frames(able.robot, task, able.resizes)

    # Any: JSON.
    def about(self) -> dict[str, Any]:
        """Return what the values depend on in addition to the network and its sampler, as JSON."""
        task = self.environments.task
        return {
            "task": task.name,
            "version": task.version,
            "horizon": task.horizon,
            "first": FIRST,
            "noise": NOISE,
            "batch": BATCH,
        }

    def __call__(self, model: Backbone) -> dict[str, Successes]:
        """Return success, and that in each stage of a task with several, by name.

        Raises `MetricError` if an action is not finite.
        """
        policy, played = self._policy(model), []
        for seeds in batches(FIRST, self.spec.samples, BATCH):
            actor = NetworkActor(policy, seeds, BATCH, NOISE)
            try:
                played += sorted(play(self.environments, seeds, actor), key=lambda one: one.seed)
            except UserError as error:
                raise MetricError(str(error)) from error
        stages = self.environments.task.reported
        found = {self.name: _share(played, lambda one: one.success)}
        for stage in stages if len(stages) > 1 else ():
            holds = lambda one, stage=stage: one.stages[stage] is not None  # noqa: E731
            found[f"{self.name}/{stage}"] = _share(played, holds)
        return found


def check_frames(robot: RobotLayout, task: Task, resizes: bool) -> None:
    """Raise `UserError` if frames of a task have another size than those of the data, and are not resized."""
    if robot.image is not None and tuple(robot.image[1:]) != task.frame[:2] and not resizes:
        height, width = robot.image[1:]
        raise UserError(
            f"eval.metrics '{SUCCESS}{task.name}': frames of the task are {task.frame[1]}x{task.frame[0]} "
            f"pixels, but those of the demonstrations {width}x{height}; set data.resolution, or use "
            "demonstrations of this task"
        )


def _share(played: Sequence[Played], holds: Callable[[Played], bool]) -> Successes:
    successes = np.array([holds(one) for one in played])
    return Successes(share(successes, len(successes)), "".join("01"[int(one)] for one in successes))
