"""Pictures of episodes: a film strip as PNG, and a film as MP4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.environments.base import Environments, Task
from harness.environments.play import play
from harness.errors import UserError
from harness.evaluation.film_file import silent_film
from harness.evaluation.sample_grid import enlarged, enlargement, png
from harness.rollouts.rollout import BATCH, Acting, batches

COLUMNS, EDGE = 10, 4
"""Frames of an episode in a strip, and width of the edge in pixels that shows its result."""
SUCCEEDED, FAILED = (60, 180, 75), (220, 60, 60)


@dataclass(frozen=True)
class Filmed:
    """The frames (T, H, W, 3) of an episode, with the last one after its last step, and its result."""

    frames: np.ndarray
    success: bool


def check_frames(task: Task) -> None:
    """Raise `UserError` if a task draws no frames."""
    if not task.frame[0]:
        raise UserError(
            f"task '{task.name}' draws no frames on this machine; install OSMesa (apt install libosmesa6) or "
            "EGL (apt install libegl1), or leave out --strip and --film"
        )


def film_episodes(environments: Environments, acting: Acting, count: int, batch: int = BATCH) -> list[Filmed]:
    """Play the first `count` episodes again, in batches of the rollout, and return their frames.

    Raises `UserError` if the task draws none.
    """
    check_frames(environments.task)
    return [
        one for seeds in batches(acting.first, count, batch) for one in _filmed(environments, acting, seeds)
    ]


def _filmed(environments: Environments, acting: Acting, seeds: Sequence[int]) -> list[Filmed]:
    seen: list[np.ndarray] = []
    played = play(
        environments,
        seeds,
        acting.actors(seeds),
        before=lambda: seen.append(environments.observe()["image"]),
    )
    found = {one.seed: one for one in played}
    seen.append(environments.observe()["image"])
    frames = np.stack(seen)
    return [
        Filmed(frames[: found[seed].steps + 1, row], found[seed].success) for row, seed in enumerate(seeds)
    ]


def strip_png(episodes: Sequence[Filmed]) -> bytes:
    """Encode a row of frames for each episode, evenly spaced in time; green edges are successes."""
    factor = enlargement(episodes[0].frames.transpose(0, 3, 1, 2).shape)
    rows = []
    for episode in episodes:
        places = np.linspace(0, len(episode.frames) - 1, COLUMNS).round().astype(int)
        row = enlarged(np.concatenate(list(episode.frames[places]), axis=1), factor)
        height, width, _ = row.shape
        edged = np.empty((height + 2 * EDGE, width + 2 * EDGE, 3), dtype=np.uint8)
        edged[:] = SUCCEEDED if episode.success else FAILED
        edged[EDGE:-EDGE, EDGE:-EDGE] = row
        rows.append(edged)
    return png(np.concatenate(rows))


def film_mp4(episodes: Sequence[Filmed], rate: int) -> bytes:
    """Encode the episodes one after the other, at `rate` frames a second."""
    return silent_film([episode.frames.transpose(3, 0, 1, 2) for episode in episodes], rate)
