"""Strips and films of episodes, read with other programs' readers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.environments.base import open_task
from harness.environments.play import Expert
from harness.errors import UserError
from harness.rollouts.pictures import (
    COLUMNS,
    EDGE,
    FAILED,
    SUCCEEDED,
    Filmed,
    film_episodes,
    film_mp4,
    strip_png,
)
from harness.rollouts.rollout import Acting, expert_acting, random_acting
from tests.support.commands import flowrace

TASK = "open-and-place:open"


@pytest.fixture(scope="module")
def filmed() -> list[Filmed]:
    environments = open_task(TASK)
    acts = (expert_acting(environments.task), random_acting(environments.task))
    return [film_episodes(environments, acting, 1)[0] for acting in acts]


def test_frames_are_those_of_the_episode(filmed: list[Filmed]) -> None:
    environments = open_task(TASK)
    environments.reset([100_000])
    for frame in filmed[0].frames:
        np.testing.assert_array_equal(frame, environments.observe()["image"][0])
        environments.step(environments.expert(), np.array([True]))
    assert environments.stages().all() and filmed[0].success and not filmed[1].success


def test_episodes_are_filmed_in_batches_of_the_rollout(filmed: list[Filmed]) -> None:
    environments, batches = open_task(TASK), []

    def actors(seeds: Sequence[int]) -> Expert:
        batches.append(list(seeds))
        return Expert()

    found = film_episodes(environments, Acting("counted", actors), 3, batch=2)
    assert batches == [[100_000, 100_001], [100_002]] and len(found) == 3
    np.testing.assert_array_equal(found[0].frames, filmed[0].frames)


def test_strip_has_a_row_for_each_episode_with_the_colour_of_its_result(filmed: list[Filmed]) -> None:
    picture = np.array(Image.open(io.BytesIO(strip_png(filmed))))
    height, width = 2 * 32 + 2 * EDGE, 2 * 32 * COLUMNS + 2 * EDGE
    assert picture.shape == (2 * height, width, 3)
    assert tuple(picture[0, 0]) == SUCCEEDED and tuple(picture[height, 0]) == FAILED
    np.testing.assert_array_equal(picture[EDGE : EDGE + 64 : 2, EDGE : EDGE + 64 : 2], filmed[0].frames[0])
    last = picture[EDGE : EDGE + 64 : 2, width - EDGE - 64 : width - EDGE : 2]
    np.testing.assert_array_equal(last, filmed[0].frames[-1])


def test_film_shows_every_frame_at_the_rate_of_the_task(filmed: list[Filmed]) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(io.BytesIO(film_mp4(filmed, 10))) as file:
        stream = file.streams.video[0]
        assert stream.average_rate == 10 and not file.streams.audio
        shown = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    # Each episode's last frame is shown eight more times.
    assert len(shown) == sum(len(one.frames) + 8 for one in filmed)
    first = shown[0][4::8, 4::8].astype(int)
    assert np.abs(first - filmed[0].frames[0]).mean() < 12


def test_film_of_a_task_without_frames_names_what_draws_them() -> None:
    environments = open_task(TASK)
    environments.task = replace(environments.task, frame=(0, 0, 3))
    with pytest.raises(UserError, match="draws no frames on this machine; install OSMesa"):
        film_episodes(environments, expert_acting(environments.task), 1)


def test_film_of_a_task_without_frames_is_refused_before_the_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = open_task(TASK)
    environments.task = replace(environments.task, frame=(0, 0, 3))
    monkeypatch.setattr("harness.environments.base.open_task", lambda name: environments)
    words = ("--task", TASK, "-n", 1, "--out", tmp_path / "out", "--strip", tmp_path / "strip.png")
    found = flowrace("rollout", "expert", *words)
    assert "draws no frames" in str(found.exception) and not (tmp_path / "out").exists()
