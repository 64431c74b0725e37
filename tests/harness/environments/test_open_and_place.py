"""The embedded task, checked against its rules, its frames and its scripted expert."""

from __future__ import annotations

import numpy as np
import pytest

from harness.config import registry
from harness.environments.base import open_task, task_names
from harness.environments.open_and_place import HOLDS_BLOCK, HOLDS_HANDLE, NOTHING, REACH, OpenAndPlace
from harness.environments.open_and_place_frames import CUBE, KNOB, SIDE, TABLE
from harness.environments.open_and_place_scene import BLOCK, STROKE, handle_y
from harness.errors import UserError

VARIANTS = ("", "open", "place")


def started(seeds: range, variant: str = "") -> OpenAndPlace:
    found = OpenAndPlace(variant)
    found.reset(seeds)
    return found


def all_of(environments: OpenAndPlace) -> np.ndarray:
    return np.ones(len(environments.scene.x), dtype=bool)


def state_of(environments: OpenAndPlace) -> bytes:
    return b"".join(values.tobytes() for values in vars(environments.scene).values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_expert_succeeds_in_at_least_95_percent_of_200_starts(variant: str) -> None:
    environments = started(range(100_000, 100_200), variant)
    succeeded = np.zeros(200, dtype=bool)
    for _ in range(environments.task.horizon):
        environments.step(environments.expert(), ~succeeded)
        succeeded |= environments.stages().all(axis=1)
        if succeeded.all():
            break
    assert succeeded.mean() >= 0.95


def test_start_is_no_success_and_depends_only_on_the_seed() -> None:
    for variant in VARIANTS:
        environments = started(range(200), variant)
        assert not environments.stages().any()
    one, several = started(range(7, 8)), started(range(5, 9))
    for name in ("image", "state", "environment_state"):
        np.testing.assert_array_equal(one.observe()[name][0], several.observe()[name][2])
    assert len(np.unique(started(range(200)).observe()["environment_state"], axis=0)) == 200


def test_replayed_actions_reproduce_states_bit_for_bit_in_any_batch() -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1.2, 1.2, (40, 6, 3)) * (0.04, 0.04, 1)
    together, alone = started(range(6)), started(range(4, 5))
    for step in actions:
        together.step(step, all_of(together))
        alone.step(step[4:5], all_of(alone))
        for name, values in alone.observe().items():
            np.testing.assert_array_equal(values[0], together.observe()[name][4])
    again = started(range(6))
    for step in actions:
        again.step(step, all_of(again))
    assert state_of(again) == state_of(together)


def test_inactive_environments_keep_their_state() -> None:
    environments = started(range(3))
    before = environments.observe()["state"].copy()
    rewards = environments.step(np.full((3, 3), 0.03), np.array([False, True, False]))
    after = environments.observe()["state"]
    assert (after[[0, 2]] == before[[0, 2]]).all() and (after[1] != before[1]).any()
    assert rewards[0] == rewards[2] == 0


def test_drawer_and_block_move_only_with_a_gripper_that_took_hold_of_them() -> None:
    rng = np.random.default_rng(1)
    environments = started(range(64))
    scene = environments.scene
    for step in range(60):
        # Half of the actions are the expert's, so that all cases occur.
        chosen = rng.random((64, 1)) < 0.5
        drawn = rng.uniform(-1, 1, (64, 3)) * (0.04, 0.04, 1)
        before = {name: values.copy() for name, values in vars(scene).items()}
        reach = np.maximum(abs(scene.x - scene.cabinet), abs(scene.y - handle_y(scene))) <= REACH
        environments.step(np.where(chosen, environments.expert(), drawn), all_of(environments))
        pulled, moved = scene.opening != before["opening"], scene.block_x != before["block_x"]
        assert (scene.held[pulled] == HOLDS_HANDLE).all() and (scene.held[moved] == HOLDS_BLOCK).all()
        taken = (scene.held == HOLDS_HANDLE) & (before["held"] != HOLDS_HANDLE)
        assert reach[taken].all() and not before["closed"][taken].any(), step
        assert ((scene.opening >= 0) & (scene.opening <= STROKE)).all()
        np.testing.assert_allclose(
            scene.block_x[moved] - scene.x[moved], (before["block_x"] - before["x"])[moved], atol=1e-12
        )


def test_block_in_a_drawer_moves_with_it_and_is_placed_only_while_it_is_open() -> None:
    environments = started(range(1))
    scene = environments.scene
    scene.opening[:], scene.inside[:], scene.held[:], scene.closed[:] = 0.28, True, HOLDS_HANDLE, True
    scene.block_x[:], scene.block_y[:] = scene.cabinet, 0.75 - 0.14
    scene.x[:], scene.y[:] = scene.cabinet, handle_y(scene)
    for _ in range(10):
        environments.step(np.array([[0.0, 0.04, 1.0]]), all_of(environments))
    assert scene.opening[0] == 0 and scene.block_y[0] == pytest.approx(0.75 + 0.14)
    assert not environments.stages().any()
    # The gripper that closes on the hidden block takes hold of nothing.
    scene.closed[:], scene.x[:], scene.y[:] = False, scene.block_x, scene.block_y
    environments.step(np.array([[0.0, 0.0, 1.0]]), all_of(environments))
    assert scene.held[0] == NOTHING
    scene.held[:], scene.x[:], scene.y[:] = HOLDS_HANDLE, scene.cabinet, handle_y(scene)
    for _ in range(10):
        environments.step(np.array([[0.0, -0.04, 1.0]]), all_of(environments))
    assert environments.stages().tolist() == [[True, True]]


def test_frame_shows_block_and_handle_at_their_places() -> None:
    environments = started(range(50))
    scene = environments.scene
    scene.x[:], scene.y[:] = 0.0, 1.0
    frames = environments.observe()["image"].astype(np.float64)
    assert frames.shape == (50, SIDE, SIDE, 3)
    centres = (np.arange(SIDE) + 0.5) / SIDE
    # Shares of red of the block, and of the blue that the handle lacks.
    block = (frames[..., 0] - TABLE[0]) / (CUBE[0] - TABLE[0])
    block[:, : SIDE // 2] = 0
    knob = (frames[..., 2] - TABLE[2]) / (KNOB[2] - TABLE[2])
    knob[:, : SIDE // 4 + 1] = knob[:, SIDE // 2 :] = 0
    for share, x, y, area in (
        (block, scene.block_x, scene.block_y, BLOCK**2),
        (knob, scene.cabinet, handle_y(scene), None),
    ):
        mass = share.sum(axis=(1, 2))
        np.testing.assert_allclose((share.sum(axis=1) * centres).sum(axis=1) / mass, x, atol=0.01)
        if area is not None:
            np.testing.assert_allclose(mass / SIDE**2, area, rtol=0.02)
            np.testing.assert_allclose(1 - (share.sum(axis=2) * centres).sum(axis=1) / mass, y, atol=0.01)


def test_action_without_a_number_or_of_another_width_is_an_error() -> None:
    environments = started(range(2))
    with pytest.raises(UserError, match="takes 3 numbers in an action \\(dx, dy, grip\\), but got 2"):
        environments.step(np.zeros((2, 2)), all_of(environments))
    with pytest.raises(UserError, match="is not a finite number"):
        environments.step(np.full((2, 3), np.nan), all_of(environments))


def test_unknown_task_names_the_nearest_one() -> None:
    for name in ("open-and-plac", "open-and-place:", "open-and-place:shut"):
        with pytest.raises(UserError, match=r"unknown task .* Did you mean 'open-and-place.*flowrace list"):
            open_task(name)
    assert {name.partition(":")[0] for name in task_names()} == set(registry.names("task"))
