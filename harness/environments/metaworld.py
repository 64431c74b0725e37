"""Tasks of Meta-World (MuJoCo, extra `metaworld`): the drawer, pick and place, and the two in sequence.

The state is Meta-World's observation with the goal: hand, gripper and objects now and one step before. A
start is drawn by Meta-World's own generator from the seed. Actions move the hand and close the gripper.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from types import ModuleType
from typing import Any

import numpy as np

from harness.environments.base import Environment, Environments, Singles, Task, installed
from harness.environments.rendering import FrameDrawer, choose_backend, frame_drawer

DRAWER, PICK = "drawer-open-v3", "pick-place-v3"
STAGES = {DRAWER: "opened", PICK: "placed"}
SEQUENCE = f"{DRAWER}+{PICK}"
HORIZON = 500
"""Steps of an episode by default in Meta-World, for each scene."""
FRAMES_PER_SECOND = 80
CAMERA = "corner4"
OBJECTS = tuple(f"object_{number}" for number in range(14))
NOW = ("hand_x", "hand_y", "hand_z", "gripper", *OBJECTS)
STATE = (*NOW, *(f"previous_{name}" for name in NOW), "goal_x", "goal_y", "goal_z")
ACTIONS = ("dx", "dy", "dz", "grip")


class MetaWorld:
    """The family `metaworld:<name>`."""

    @staticmethod
    def names() -> Mapping[str, str]:
        return {
            DRAWER: "Pull a drawer open with a robot arm (extra metaworld).",
            PICK: "Pick up a puck and bring it to a place in the air (extra metaworld).",
            SEQUENCE: "The two in sequence: the second scene begins when the first has succeeded.",
        }

    @staticmethod
    def open(variant: str) -> Environments:
        names = variant.split("+")
        for name in names:
            _class_of(name)
        make = (lambda: Scene(variant)) if len(names) == 1 else (lambda: InSequence(names))
        return Singles(make)


def _module(name: str) -> ModuleType:
    """Return a module of Meta-World. Raises `UserError` with the command that installs it."""
    choose_backend()
    installed("metaworld", "metaworld")
    return importlib.import_module(f"metaworld.{name}")


# Any: a class of Meta-World.
def _class_of(name: str) -> Any:
    return _module("env_dict").ENV_CLS_MAP[name]


def _task(name: str, stages: Sequence[str], frame: tuple[int, int, int]) -> Task:
    return Task(
        name=f"metaworld:{name}",
        stages=tuple(stages),
        horizon=HORIZON * len(stages),
        frames_per_second=FRAMES_PER_SECOND,
        state=STATE,
        environment_state=(),
        actions=ACTIONS,
        low=(-1.0,) * len(ACTIONS),
        high=(1.0,) * len(ACTIONS),
        frame=frame,
        expert=True,
        version=f"metaworld {version('metaworld')}, mujoco {version('mujoco')}",
    )


class Scene:
    """One scene of Meta-World with its scripted expert."""

    def __init__(self, name: str, horizon: int = HORIZON) -> None:
        # Any: an environment and a policy of Meta-World.
        self._env: Any = _class_of(name)()
        self._policy: Any = _module("policies").ENV_POLICY_MAP[name]()
        # Starts are drawn again at each reset, from the environment's own generator, and the goal is
        # observed. The public way to set both, a task, passes pickled bytes.
        self._env.seeded_rand_vec, self._env._freeze_rand_vec = True, False
        self._env._set_task_called, self._env._partially_observable = True, False
        vars(self._env).pop("sawyer_observation_space", None)
        # After its own limit a step raises, but a scene of a sequence may take the time of all of them.
        self._env.max_path_length = horizon
        self._drawer: FrameDrawer | None = _drawer_of(name)
        self._seen, self._success = np.zeros(len(STATE)), False
        self.task = _task(name, [STAGES[name]], self._drawer.shape if self._drawer else (0, 0, 3))

    def reset(self, seed: int) -> None:
        self._env.seed(seed)
        self._seen, _ = self._env.reset()
        self._success = False

    def state(self) -> np.ndarray:
        return self._seen.astype(np.float32)

    def frame(self) -> np.ndarray:
        if self._drawer is None:
            return np.zeros((0, 0, 3), dtype=np.uint8)
        return self._drawer.draw(self._env.data)

    def step(self, action: np.ndarray) -> float:
        self._seen, reward, _, _, about = self._env.step(action.astype(np.float32))
        self._success = bool(about["success"])
        return float(reward)

    def stages(self) -> Sequence[bool]:
        return (self._success,)

    def expert(self) -> np.ndarray:
        with warnings.catch_warnings():
            # It warns that its actions are clipped.
            warnings.simplefilter("ignore")
            return np.asarray(self._policy.get_action(self._seen), dtype=np.float64)


@cache
def _drawer_of(name: str) -> FrameDrawer | None:
    """Return what draws the scenes of a name, which share it; None if this machine has no OpenGL."""
    # Any: an environment of Meta-World.
    env: Any = _class_of(name)()
    return frame_drawer(env.model, CAMERA)


class InSequence:
    """Scenes one after the other: each begins when the one before it has succeeded."""

    def __init__(self, names: Sequence[str]) -> None:
        self._scenes: list[Environment] = [Scene(name, HORIZON * len(names)) for name in names]
        stages = [STAGES[name] for name in names]
        self.task = _task("+".join(names), stages, self._scenes[0].task.frame)
        self._seed, self._done = 0, 0

    def reset(self, seed: int) -> None:
        self._seed, self._done = seed, 0
        self._scenes[0].reset(seed)

    def state(self) -> np.ndarray:
        return self._now.state()

    def frame(self) -> np.ndarray:
        return self._now.frame()

    def step(self, action: np.ndarray) -> float:
        reward = self._now.step(action)
        if all(self._now.stages()):
            self._done += 1
            if self._done < len(self._scenes):
                self._now.reset(self._seed)
        return reward

    def stages(self) -> Sequence[bool]:
        return [number < self._done for number in range(len(self._scenes))]

    def expert(self) -> np.ndarray:
        return self._now.expert()

    @property
    def _now(self) -> Environment:
        return self._scenes[min(self._done, len(self._scenes) - 1)]
