"""Demonstrations of a robot: samples, scales, LeRobot's layouts, and files that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from harness.config.data_spec import DataParts, DataSpec
from harness.data.disk.demos import Demos
from harness.data.open import open_dataset, split
from harness.data.robot import RobotLayout, Scale
from harness.errors import UserError
from tests.support.demonstrations import (
    LENGTHS,
    action,
    as_videos,
    demonstrations,
    frame,
    rows,
    state,
    write,
    write_info,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demonstrations(tmp_path_factory.mktemp("demos"))


def opened(folder: Path, **fields: Any) -> Demos:
    dataset = open_dataset(DataSpec(name="demos", root=str(folder), chunk=3, **{"frames": 2, **fields}))
    assert isinstance(dataset, Demos)
    return dataset


def parts_of(data: Demos, index: int) -> list[np.ndarray]:
    """Return the parts of a sample."""
    shapes = [data.shape, *data.beside]
    edges = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    flat = np.split(data.sample(index).x, edges)
    return [part.reshape(shape) for part, shape in zip(flat, shapes, strict=True)]


def test_sample_has_the_frames_the_state_and_the_actions_from_its_step_on(folder: Path) -> None:
    data = opened(folder)
    assert len(data) == sum(LENGTHS) and data.kinds == ("video", "state", "action")
    assert (data.shape, data.beside) == ((3, 2, 8, 8), ((2, 1), (3, 3)))
    video, own, actions = parts_of(data, LENGTHS[0] + 1)
    assert np.array_equal(np.round((video + 1) * 127.5).astype(int)[:, :, 0, 0], [[45, 50]] * 3)
    assert np.array_equal(frame(1, 2)[0, 0], [50, 50, 50])
    robot = data.robot
    assert robot.state is not None
    assert robot.state.restored(own.T)[0] == pytest.approx(state(1, 1), abs=1e-6)
    assert robot.action.restored(actions.T) == pytest.approx(
        np.array([action(1, 1), action(1, 2), action(1, 3)]), abs=1e-6
    )


def test_last_frame_and_action_repeat_after_the_end(folder: Path) -> None:
    data = opened(folder)
    video, _, actions = parts_of(data, LENGTHS[0] - 1)
    assert np.array_equal(video[:, 0], video[:, 1])
    assert np.array_equal(actions[:, 0], actions[:, 1]) and np.array_equal(actions[:, 1], actions[:, 2])


def test_scales_are_quantiles_of_the_training_episodes(folder: Path) -> None:
    data = opened(folder, held_out=0.5)
    train = split(data, 0.5).train
    episodes = {data.steps[int(index)][0] for index in train}
    assert 0 < len(episodes) < len(LENGTHS)
    values = np.array([action(e, s) for e in episodes for s in range(LENGTHS[e])])
    assert data.robot.action.low == pytest.approx(np.quantile(values, 0.01, axis=0))
    assert data.robot.action.high == pytest.approx(np.quantile(values, 0.99, axis=0))


def test_all_steps_of_an_episode_are_on_one_side_of_the_split(folder: Path) -> None:
    data = opened(folder)
    sides = split(data, 0.5)
    of_train, of_held_out = ({data.steps[int(i)][0] for i in side} for side in sides)
    assert of_train and of_held_out and not of_train & of_held_out


def test_scale_restores_values_and_keeps_constant_ones() -> None:
    scale = Scale.of(np.array([[0.0, 2.0], [1.0, 2.0], [4.0, 2.0]]))
    values = np.array([[3.0, 2.0], [9.0, 2.0]], dtype=np.float32)
    assert scale.restored(scale.scaled(values)) == pytest.approx(values)
    assert not scale.scaled(values)[:, 1].any()
    ends = np.array([scale.low, scale.high])
    assert scale.scaled(ends)[:, 0] == pytest.approx([-1, 1])


def test_number_that_differs_by_rounding_alone_is_constant() -> None:
    values = np.array([[0.3, 500.0], [np.nextafter(np.float32(0.3), 1), 500.0001]], dtype=np.float32)
    scale = Scale.of(values)
    assert scale.low[0] < scale.high[0]
    assert scale.scaled(values) == pytest.approx(np.zeros((2, 2)), abs=1e-3)
    assert scale.restored(scale.scaled(values)) == pytest.approx(values, rel=1e-6)


def test_videos_alone_are_bytes(folder: Path) -> None:
    parts = DataParts.model_validate({"state": {"weight": 0.0}, "action": {"weight": 0.0}})
    data = opened(folder, parts=parts)
    assert (data.modality, data.kinds, data.beside) == ("video", (), ())
    x = data.sample(1).x
    assert x.dtype == np.uint8 and np.array_equal(x[:, 0], frame(0, 1).transpose(2, 0, 1))


def test_actions_may_follow_the_state_alone(tmp_path: Path) -> None:
    data = opened(demonstrations(tmp_path, images=False))
    assert data.kinds == ("state", "action") and (data.shape, data.beside) == ((2, 1), ((3, 3),))


def test_state_of_the_environment_is_observed_without_frames(tmp_path: Path) -> None:
    more = {"observation.environment_state": pa.array([[7.0]] * sum(LENGTHS), pa.list_(pa.float32()))}
    write(tmp_path, rows(range(len(LENGTHS)), images=False) | more)
    data = opened(tmp_path)
    assert data.shape == (3, 1) and data.robot.with_environment


@pytest.mark.parametrize("version", [2, 3])
def test_frames_in_videos_of_lerobot_are_those_of_their_steps(version: int, tmp_path: Path) -> None:
    data = opened(as_videos(tmp_path, version))
    assert data.robot.image == (3, 16, 16)
    for index, (episode, step) in enumerate([(0, 0), (0, 1)]):
        video = (parts_of(data, index)[0] + 1) * 127.5
        assert np.abs(video[:, 0] - frame(episode, step, 16).transpose(2, 0, 1)).max() <= 1
    last = (parts_of(data, len(data) - 1)[0] + 1) * 127.5
    assert np.abs(last[:, 1, 0, 0] - frame(5, 3)[0, 0]).max() <= 1


def test_size_of_a_chunk_may_be_written_as_a_float(tmp_path: Path) -> None:
    info = as_videos(tmp_path, 2) / "meta" / "info.json"
    info.write_text(info.read_text().replace('"chunks_size": 1000', '"chunks_size": 1000.0'))
    assert "1000.0" in info.read_text() and len(opened(tmp_path)) == sum(LENGTHS)


def test_fingerprint_depends_on_actions_and_not_on_files(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "one", rows(range(len(LENGTHS))))
    write_info(tmp_path / "one")
    assert opened(tmp_path / "one").fingerprint == opened(folder).fingerprint
    changed = rows(range(len(LENGTHS)))
    changed["action"] = pa.array([[9.0, 9.0, 9.0]] * sum(LENGTHS), pa.list_(pa.float32()))
    write(tmp_path / "two", changed)
    assert opened(tmp_path / "two").fingerprint != opened(folder).fingerprint


def lists(values: list[Any]) -> pa.Array:
    return pa.array(values, pa.list_(pa.float32()))


BROKEN = {
    "no column": ({"action": None}, "has no column 'action'"),
    "no actions": ({"action": lists([[1.0]] * 4 + [None])}, "episode 0 has a step without 'action'"),
    "nan": (
        {"action": lists([[1.0]] * 4 + [[float("nan")]])},
        "'action' has a number that is not finite",
    ),
    "width": ({"action": lists([[1.0]] * 4 + [[1.0, 2.0]])}, "'action' has 2 numbers, but 1 at the first"),
    "texts": ({"action": ["a"] * 5}, "column 'action' is string, expected lists of numbers"),
    "gap": ({"frame_index": [0, 1, 2, 3, 5]}, "has no complete frame_index from 0 to 4"),
    "twice": ({"frame_index": [0, 1, 2, 3, 3]}, "has no complete frame_index from 0 to 4"),
    "episode": ({"episode_index": [0.5] * 5}, "column 'episode_index' is double"),
    "image": ({"observation_dot_image": [{"bytes": b"x", "path": None}] * 5}, "is not an image"),
    "no bytes": ({"observation_dot_image": [{"bytes": None, "path": "a"}] * 5}, "has no bytes of an image"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_episode_that_cannot_be_used_is_named(case: str, tmp_path: Path) -> None:
    changed, message = BROKEN[case]
    file = write(tmp_path, rows([0], **changed))
    with pytest.raises(UserError, match=message) as error:
        opened(tmp_path)
    assert str(file) in str(error.value)


def test_episode_with_actions_of_another_width_is_named(tmp_path: Path) -> None:
    write(tmp_path, rows([0]), "episode_000000")
    write(tmp_path, rows([1], action=lists([[1.0, 2.0]] * LENGTHS[1])), "episode_000001")
    with pytest.raises(UserError, match=r"episode 1 has an action of 2 numbers, but .* of 3"):
        opened(tmp_path)


def test_demonstrations_of_another_task_are_refused(folder: Path) -> None:
    assert opened(folder, task="push").robot.task == "push"
    with pytest.raises(UserError, match=r"data\.task = pull, but .* has demonstrations of 'push'"):
        opened(folder, task="pull")


def test_video_that_is_too_short_is_named(tmp_path: Path) -> None:
    as_videos(tmp_path, 2)
    short = tmp_path / "videos" / "chunk-000" / "observation.images.top"
    (short / "episode_000000.mp4").write_bytes((short / "episode_000003.mp4").read_bytes())
    with pytest.raises(UserError, match=r"needs 5 frames, but .*episode_000000.mp4 has 3"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"action": {"weight": 0.0}}, "learn actions with the video or the state, or the video alone"),
        ({"video": {"weight": 0.0}, "state": {"weight": 0.0}}, "learn actions with the video or the state"),
        ({"audio": {"weight": 0.2}}, "demos has the parts video, state, action"),
        ({"action": {"alone": 0.2}}, "belong together"),
    ],
)
def test_parts_without_sense_are_refused(folder: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(folder, parts=DataParts.model_validate(parts))


def test_layout_of_a_policy_needs_an_observation() -> None:
    with pytest.raises(ValueError, match="observes an image or a state"):
        RobotLayout(action=Scale(low=(0.0,), high=(1.0,)))
    with pytest.raises(ValueError, match="every lower quantile"):
        Scale(low=(2.0,), high=(1.0,))
