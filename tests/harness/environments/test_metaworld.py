"""Tasks of Meta-World through the seam, against Meta-World's own environment."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np
import pytest

from harness.environments.base import Environments, open_task, task_names
from harness.environments.metaworld import DRAWER, PICK, SEQUENCE, STATE
from harness.environments.play import Expert, Played, play
from harness.errors import UserError


def opened(name: str) -> Environments:
    try:
        return open_task(f"metaworld:{name}")
    except UserError as error:
        pytest.skip(str(error))


def experts(environments: Environments, seeds: range) -> list[Played]:
    return list(play(environments, seeds, Expert()))


@pytest.mark.parametrize(("name", "extra"), [(f"metaworld:{DRAWER}", "metaworld"), ("pusht", "pusht")])
def test_missing_package_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    # The modules of the families are imported first.
    assert extra in {full.partition(":")[0] for full in task_names()}
    monkeypatch.setattr(importlib, "import_module", missing_only(extra, importlib.import_module))
    with pytest.raises(UserError, match=rf"is not installed; run: pip install 'flowrace\[{extra}\]'"):
        open_task(name)


def missing_only(extra: str, usual: Any) -> Any:
    """Return an `import_module` that fails for the package of an extra."""
    package = {"metaworld": "metaworld", "pusht": "gym_pusht"}[extra]

    def found(module: str) -> Any:
        if module.partition(".")[0] == package:
            raise ImportError(module)
        return usual(module)

    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [DRAWER, PICK, SEQUENCE])
def test_expert_succeeds_in_at_least_95_percent_of_starts(name: str) -> None:
    """20 starts; with 200, each of the three succeeds in all of them."""
    environments = opened(name)
    played = [experts(environments, range(seed, seed + 1))[0] for seed in range(100_000, 100_020)]
    assert sum(one.success for one in played) >= 19
    assert len({one.actions for one in played}) == 20


@pytest.mark.slow
def test_state_and_success_are_those_of_the_gymnasium_environment() -> None:
    opened(PICK)
    import gymnasium
    import metaworld  # noqa: F401

    environments = opened(PICK)
    environments.reset([7])
    name = "Meta-World/goal_observable"
    theirs: Any = gymnasium.make(name, env_name=f"{PICK}-goal-observable", seed=1)
    inner = theirs.unwrapped
    inner._freeze_rand_vec, inner._last_rand_vec = True, row(environments)._env._last_rand_vec
    seen, _ = theirs.reset()
    np.testing.assert_array_equal(environments.observe()["state"][0], seen.astype(np.float32))
    for _ in range(60):
        action = np.clip(environments.expert(), -1, 1).astype(np.float32)
        reward = environments.step(action, np.array([True]))
        seen, expected, _, _, about = theirs.step(action[0])
        np.testing.assert_array_equal(environments.observe()["state"][0], seen.astype(np.float32))
        assert reward[0] == expected and environments.stages()[0, 0] == bool(about["success"])
    assert environments.stages().all()


# Any: a scene with Meta-World's environment.
def row(environments: Any) -> Any:
    return environments._rows[0]


@pytest.mark.slow
def test_replay_is_bit_for_bit_in_used_and_fresh_environments() -> None:
    environments = opened(SEQUENCE)

    def states(environments: Environments, actions: list[np.ndarray]) -> list[bytes]:
        environments.reset([3])
        found = []
        for action in actions:
            environments.step(action, np.array([True]))
            found.append(environments.observe()["state"].tobytes())
        return found

    environments.reset([3])
    actions = []
    for _ in range(160):
        actions.append(environments.expert())
        environments.step(actions[-1], np.array([True]))
    expected = states(environments, actions)
    experts(environments, range(5, 6))
    assert states(environments, actions) == expected
    assert states(opened(SEQUENCE), actions) == expected


@pytest.mark.slow
def test_second_scene_begins_when_the_first_has_succeeded() -> None:
    environments = opened(SEQUENCE)
    (played,) = experts(environments, range(3, 4))
    assert environments.task.reported == ("opened", "placed", "both")
    alone = [experts(opened(name), range(3, 4))[0].steps for name in (DRAWER, PICK)]
    assert (played.stages["opened"], played.stages["placed"]) == (alone[0], sum(alone))
    assert environments.task.horizon == 1000 and len(STATE) == 39


@pytest.mark.slow
def test_policy_that_does_nothing_fails_at_the_horizon_of_the_sequence() -> None:
    class Idle(Expert):
        def plan(self, environments: Environments, step: int) -> np.ndarray:
            return np.zeros((1, 1, 4))

    (played,) = play(opened(SEQUENCE), [3], Idle())
    assert (played.success, played.steps) == (False, 1000)


@pytest.mark.slow
def test_frames_are_drawn_where_the_machine_has_opengl_and_change_no_state() -> None:
    environments = opened(DRAWER)
    if not environments.task.frame[0]:
        assert environments.observe()["image"].shape[1:] == (0, 0, 3)
        pytest.skip(f"no OpenGL without a window (MUJOCO_GL={os.environ.get('MUJOCO_GL')})")
    environments.reset([1, 2])
    frames = environments.observe()["image"]
    assert frames.shape == (2, 64, 64, 3) and frames.std() > 10 and (frames[0] != frames[1]).any()
    (plain,) = experts(environments, range(1, 2))
    drawn = list(play(environments, [1], Expert(), before=lambda: [environments.observe()["image"]].clear()))
    assert drawn == [plain]
    assert (environments.observe()["image"][0] != frames[0]).any()
