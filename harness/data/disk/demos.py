"""Demonstrations of a robot: observations with the actions that follow them, in LeRobot's layouts."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.dataset import Dataset, Sample
from harness.data.disk.lerobot import EXPECTED, Episode, Episodes, read_episodes
from harness.data.disk.media import Clips, Memory
from harness.data.disk.pixels import decode, fit
from harness.data.disk.survey import Encoded, FileSurvey, common_shape, data_path, survey, survey_files
from harness.data.disk.videos import frames_of, survey_video
from harness.data.open import from_pixels, is_held_out_key, split
from harness.data.robot import CHUNK, RobotLayout, Scale
from harness.data.stored import Stored, sizes_of, spread
from harness.errors import UserError
from metrics.files import media


class Demos:
    """Steps of demonstrations in LeRobot's layouts: frames from a step on, its state, and the next actions.

    A sample begins at every step of an episode. It has `data.chunk` actions (6 by default) and the current
    frame with those that follow (`data.frames`, by default one more than actions). After the end of an
    episode, its last frame and action repeat. All steps of an episode are on the same side of the split.
    State and actions are scaled by quantiles of the training episodes (harness/data/robot.py). With the
    weight 0 for state and action, samples are videos. `data.episodes` keeps the first training
    episodes and all held-out ones.

    Columns are `episode_index`, `action`, `observation.state`, and `observation.image` or what
    `data.image_key` names (`none` for no frames). Without frames, `observation.environment_state` is part of
    the state.
    """

    modality = "robot"
    reads = ("root", "resolution", "channels", "image_key", "frames", "chunk", "task", "episodes")
    classes = 1

    def __init__(self, spec: DataSpec) -> None:
        self._found = found = read_episodes(data_path(spec, EXPECTED), spec.image_key)
        _check_task(spec, found)
        self.files = len(found.files)
        self.resizes = spec.resolution is not None
        self.stored, image, hashes = _survey(spec, found)
        keys = [_digest(episode) for episode in found.episodes]
        # The folder's, whatever `data.episodes` leaves out.
        self.fingerprint = _fingerprint(keys, hashes)
        kept = _kept(spec, keys)
        self._episodes, self._keys = [found.episodes[i] for i in kept], [keys[i] for i in kept]
        self.kept = _fingerprint(self._keys, ()) if len(kept) < len(keys) else ""
        self.steps = Clips([len(episode) for episode in self._episodes])
        self.robot = self._layout(spec, image)
        self._memory = Memory()
        self._select(tuple(self.robot.parts))

    def with_parts(self, kinds: Sequence[str]) -> Dataset:
        """Return the samples with some of their parts."""
        if kinds != ("video",) and not ({"video", "state"} & set(kinds) and "action" in kinds):
            raise UserError(
                f"{self._found.root} has {', '.join(self.robot.parts)}, of which data.parts leaves "
                f"{', '.join(kinds) or 'nothing'}; keep actions with the video or the state, or the "
                "video alone"
            )
        other = copy.copy(self)
        other._select(tuple(kinds))
        return other

    def __len__(self) -> int:
        return len(self.steps)

    def sample(self, index: int) -> Sample:
        number, step = self.steps[index]
        episode, robot = self._episodes[number], self.robot
        if self.modality == "video":
            return Sample(self._clip(number, step), 0)
        parts = []
        if "video" in self.kinds:
            parts.append(from_pixels(self._clip(number, step)).numpy())
        if "state" in self.kinds and robot.state is not None and episode.state is not None:
            parts.append(robot.state.scaled(episode.state[step]))
        actions = episode.action[_following(step, robot.chunk, len(episode))]
        parts.append(robot.action.scaled(actions).T)
        return Sample(np.concatenate([part.ravel() for part in parts]), 0)

    def label(self, index: int) -> int:
        return 0

    @property
    def targets(self) -> Callable[[int], np.ndarray] | None:
        """A function from an index to the scaled states at the frames of a sample; None without states."""
        return None if self.robot.state is None else self._states

    def _states(self, index: int) -> np.ndarray:
        number, step = self.steps[index]
        state, scale = self._episodes[number].state, self.robot.state
        assert state is not None and scale is not None
        return scale.scaled(state[_following(step, self.robot.frames, len(state))]).ravel()

    def key(self, index: int) -> bytes:
        """Return the key of the episode, so that all its steps are on the same side of the split."""
        return self._keys[self.steps[index][0]]

    def _select(self, kinds: tuple[str, ...]) -> None:
        shapes = self.robot.parts
        self.modality = "video" if kinds == ("video",) else "robot"
        # A single part is determined by its shape.
        self.kinds = () if len(kinds) == 1 else kinds
        first, *beside = (shapes[kind] for kind in kinds)
        self.shape, self.beside = first, tuple(beside)
        if self.modality == "robot":
            kept = {"image": self.robot.image if "video" in kinds else None}
            kept |= {"state": self.robot.state if "state" in kinds else None}
            self.robot = RobotLayout.model_validate(self.robot.model_dump() | kept)

    def _layout(self, spec: DataSpec, image: tuple[int, int, int] | None) -> RobotLayout:
        """Return the layout, with the quantiles of the training episodes."""
        sides = split(self, spec.held_out)
        train = [self._episodes[i] for i in sorted({self.steps[int(i)][0] for i in sides.train})]
        states = [episode.state for episode in train if episode.state is not None]
        chunk = spec.chunk or CHUNK
        return RobotLayout(
            task=spec.task or self._found.task,
            image=image,
            frames=spec.frames or chunk + 1,
            chunk=chunk,
            state=Scale.of(np.concatenate(states)) if states else None,
            action=Scale.of(np.concatenate([episode.action for episode in train])),
            with_environment=self._found.with_environment,
        )

    def _clip(self, number: int, step: int) -> np.ndarray:
        """Return the current frame and those that follow, uint8 (C, F, H, W)."""
        rows = _following(step, self.robot.frames, len(self._episodes[number]))
        frames = self._memory.get(number, self._frames)
        return np.ascontiguousarray(frames[rows].transpose(1, 0, 2, 3))

    def _frames(self, number: int) -> np.ndarray:
        """Return all frames of an episode, uint8 (N, C, H, W)."""
        episode, shape = self._episodes[number], self.robot.image
        assert episode.frames is not None and shape is not None
        if episode.frames.video is None:
            named = enumerate(episode.frames.images)
            return np.stack([fit(decode(one, f"{episode.where} step {row}"), shape) for row, one in named])
        first, video = episode.frames.first, episode.frames.video
        file = media.Encoded(str(video), video.read_bytes())
        return frames_of(file, range(first, first + len(episode)), shape).transpose(1, 0, 2, 3)


def _kept(spec: DataSpec, keys: Sequence[bytes]) -> list[int]:
    """Return the numbers of the held-out episodes and of the first `data.episodes` others.

    Raises `UserError` if there are fewer.
    """
    train = [i for i, key in enumerate(keys) if not is_held_out_key(key, spec.held_out)]
    if spec.episodes is None:
        return list(range(len(keys)))
    if spec.episodes > len(train):
        raise UserError(
            f"data.episodes = {spec.episodes}, but {spec.root} has {len(train)} demonstrations to train on, "
            f"and {len(keys) - len(train)} that are held out; lower it, or record more"
        )
    left_out = set(train[spec.episodes :])
    return [i for i in range(len(keys)) if i not in left_out]


def _following(step: int, count: int, length: int) -> np.ndarray:
    """Return a step and those that follow it; the last one repeats."""
    return np.minimum(np.arange(step, step + count), length - 1)


def _check_task(spec: DataSpec, found: Episodes) -> None:
    if spec.task and found.task and spec.task != found.task:
        raise UserError(
            f"data.task = {spec.task}, but {found.root} has demonstrations of '{found.task}'; give those of "
            "the task"
        )


def _survey(spec: DataSpec, found: Episodes) -> tuple[Stored, tuple[int, int, int] | None, list[str]]:
    """Decode every frame once, and return their form on disk, their common shape and their hashes."""
    if not found.image:
        return Stored(), None, []
    if found.episodes[0].frames is not None and found.episodes[0].frames.video is not None:
        return _survey_videos(spec, found)
    named: dict[Path, list[Encoded]] = {file: [] for file in found.files}
    places = []
    for episode in found.episodes:
        file = Path(episode.where.rpartition(" episode ")[0])
        for row, image in enumerate(episode.frames.images if episode.frames else ()):
            place = f"{episode.where} step {row}"
            named[file].append(Encoded(lambda image=image: image, place))
            places.append(place)
    surveys = survey_files(found.root, found.files, named.__getitem__, f"demos {found.image}")
    sizes = sizes_of((one.width, one.height) for one in surveys)
    shape = common_shape(spec, surveys, places.__getitem__)
    return Stored(sizes), shape, [one.sha256 for one in surveys]


def _survey_videos(spec: DataSpec, found: Episodes) -> tuple[Stored, tuple[int, int, int], list[str]]:
    framed = [(one, one.frames) for one in found.episodes if one.frames]
    ranges = [(one.where, frames.video, frames.first + len(one)) for one, frames in framed]
    videos = list(dict.fromkeys(video for _, video, _ in ranges if video is not None))
    names = [str(video.relative_to(found.root)) for video in videos]

    def inspected(item: Encoded) -> tuple[object, ...]:
        content = item.read()
        return hashlib.sha256(content).hexdigest(), *survey_video(media.Encoded(item.where, content))

    def inside(name: str) -> list[Encoded]:
        return [Encoded((found.root / name).read_bytes, str(found.root / name))]

    surveys = survey(found.root, names, inside, "demos videos", inspected)
    lengths = {video: one[1] for video, one in zip(videos, surveys, strict=True)}
    for where, video, end in ranges:
        if video is not None and lengths[video] < end:
            raise UserError(
                f"{where} needs {end} frames, but {video} has {lengths[video]}; restore or remove it"
            )
    sizes = [FileSurvey(one[0], one[2], one[3], 3) for one in surveys]
    stored = Stored(
        sizes_of((one.width, one.height) for one in sizes),
        spread(one[4] for one in surveys),
        turned=sum(one[5] for one in surveys),
        videos=len(surveys),
    )
    return stored, common_shape(spec, sizes, lambda i: str(videos[i])), [one[0] for one in surveys]


def _digest(episode: Episode) -> bytes:
    """Return the hash of states and actions of an episode."""
    total = hashlib.sha256(f"{episode.action.shape}".encode() + episode.action.tobytes())
    if episode.state is not None:
        total.update(f"{episode.state.shape}".encode() + episode.state.tobytes())
    return total.digest()


def _fingerprint(keys: Sequence[bytes], hashes: Sequence[str]) -> str:
    total = hashlib.sha256(b"".join(keys))
    total.update("".join(hashes).encode())
    return total.hexdigest()[:16]
