"""The task of gym-pusht through the seam."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.environments.base import Environments, open_task
from harness.environments.demonstrations import write_demonstrations
from harness.errors import UserError


@pytest.fixture(scope="module")
def environments() -> Environments:
    try:
        return open_task("pusht")
    except UserError as error:
        pytest.skip(str(error))


def push(environments: Environments, seeds: list[int], steps: int) -> np.ndarray:
    """Push towards moving points; return the states (steps, B, 5)."""
    environments.reset(seeds)
    seen = []
    for step in range(steps):
        point = 256 + 150 * np.array([np.cos(step / 5), np.sin(step / 5)])
        environments.step(np.tile(point, (len(seeds), 1)), np.ones(len(seeds), dtype=bool))
        seen.append(environments.observe()["state"])
    return np.array(seen)


@pytest.mark.slow
def test_replay_is_bit_for_bit_in_any_batch(environments: Environments) -> None:
    together = push(environments, [4, 5], 30)
    push(environments, [9], 10)
    np.testing.assert_array_equal(push(environments, [5], 30)[:, 0], together[:, 1])
    fresh = open_task("pusht")
    np.testing.assert_array_equal(push(fresh, [4, 5], 30), together)
    assert not environments.stages().any()


@pytest.mark.slow
def test_start_is_that_of_gymnasium_with_the_same_seed(environments: Environments) -> None:
    import gym_pusht  # noqa: F401
    import gymnasium

    theirs = gymnasium.make("gym_pusht/PushT-v0")
    for seed in (0, 100_003):
        environments.reset([seed])
        seen, _ = theirs.reset(seed=seed)
        np.testing.assert_array_equal(environments.observe()["state"][0], seen.astype(np.float32))


@pytest.mark.slow
def test_block_on_its_place_succeeds_with_reward_1(environments: Environments) -> None:
    environments.reset([0])
    # Any: the environment of gym-pusht.
    inner: Any = vars(environments)["_rows"][0]._env
    inner.agent.position = (20.0, 20.0)
    # The angle first, because it turns the block around its centre of mass.
    inner.block.angle = float(inner.goal_pose[2])
    inner.block.position = tuple(inner.goal_pose[:2])
    reward = environments.step(np.array([[20.0, 20.0]]), np.array([True]))
    assert environments.stages().all() and reward[0] == 1
    assert environments.observe()["image"].shape == (1, 96, 96, 3)


@pytest.mark.slow
def test_task_without_an_expert_has_no_demonstrations(environments: Environments, tmp_path: Any) -> None:
    with pytest.raises(UserError, match="task 'pusht' has no scripted expert; train on recorded"):
        write_demonstrations(environments, 2, tmp_path / "demos")
    assert not (tmp_path / "demos").exists()
