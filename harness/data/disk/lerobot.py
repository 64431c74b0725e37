"""Episodes in LeRobot's layouts (versions 2.1 and 3.0): parquet of steps, with frames in it or in videos.

data/chunk-000/*.parquet       a row a step: episode_index, frame_index, observation.state, action
videos/                        frames of an episode in an MP4 (2.1), or of several in one (3.0)
meta/info.json                 frames per second and features
meta/episodes/*/*.parquet      the place of each episode in the videos (3.0)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Any: JSON, and pyarrow's tables.
from typing import Any

import numpy as np

from harness.environments.demonstrations import INFO, RECIPE
from harness.environments.episode_file import ACTION, ENVIRONMENT, EPISODE, IMAGE, STATE, STEP
from harness.errors import UserError
from harness.files.files import read_text
from harness.files.parse import parse_json
from metrics.files.parquet_files import bounded_table, parquet_files, schema_of
from metrics.value import MetricError

EXPECTED = "a folder of demonstrations in LeRobot's layout, with data/*/*.parquet and meta/info.json"
WIDEST = 4096
"""Most numbers of a state or an action."""


@dataclass(frozen=True)
class Frames:
    """The frames of an episode: encoded images, or a range of a video."""

    images: Sequence[bytes] = ()
    """Encoded images, one a step."""
    video: Path | None = None
    first: int = 0
    """Number of the video's frame at the first step."""


@dataclass(frozen=True)
class Episode:
    """The steps of one demonstration."""

    where: str
    """File and episode, for messages."""
    action: np.ndarray
    """(N, A) float32."""
    state: np.ndarray | None
    """(N, S) float32."""
    frames: Frames | None

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True)
class Episodes:
    """The demonstrations of a folder."""

    root: Path
    episodes: list[Episode]
    files: list[Path]
    image: str
    """Name of the feature of frames; empty without frames."""
    with_environment: bool
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        task = self.info.get("task", "")
        return task if isinstance(task, str) else ""


def read_episodes(root: Path, image_key: str = "") -> Episodes:
    """Return the demonstrations of a folder, in the order of their numbers.

    Frames are those of `image_key`, by default `observation.image` or the only feature of images. Raises
    `UserError`, naming file and episode, for steps that are missing, out of order, or without numbers.
    """
    info = _info(root)
    try:
        files = parquet_files(root / "data")[0] if (root / "data").is_dir() else []
        columns = schema_of(files[0]).names if files else []
    except MetricError as error:
        raise UserError(f"{error}; replace it") from error
    if not files:
        raise UserError(f"data.root = {root} has no data/*/*.parquet; expected {EXPECTED}")
    for name in (EPISODE, ACTION):
        if name not in columns:
            raise UserError(f"{files[0]} has no column '{name}' ({', '.join(columns)}); expected {EXPECTED}")
    image, in_videos = _image_feature(root, columns, info, image_key)
    vectors = [name for name in (STATE, ENVIRONMENT) if name in columns]
    with_environment = not image and ENVIRONMENT in vectors
    vectors = vectors if with_environment else [name for name in vectors if name == STATE]
    episodes: dict[int, Episode] = {}
    for file in files:
        for number, episode in _episodes(file, columns, vectors, "" if in_videos else image):
            if number in episodes:
                raise UserError(f"{episode.where} is also in {episodes[number].where}; remove one of them")
            episodes[number] = episode
    ordered = dict(sorted(episodes.items()))
    if in_videos:
        ordered = _with_videos(root, image, ordered, info)
    if not ordered:
        raise UserError(f"data.root = {root} has no episodes; expected {EXPECTED}")
    _check_count(root, len(ordered), info)
    _check_widths(list(ordered.values()))
    return Episodes(root, list(ordered.values()), files, image, with_environment, info)


def _info(root: Path) -> dict[str, Any]:
    """Return `meta/info.json`; an empty table without it. Raises `UserError` for an unfinished recording."""
    file = root / INFO
    if not file.exists():
        if (root / RECIPE).exists():
            raise UserError(
                f"{root} is an unfinished recording, without {INFO}; rerun flowrace data demos with "
                f"--out {root}"
            )
        return {}
    try:
        info = parse_json(read_text(file, "JSON"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}; replace it") from error
    if not isinstance(info, dict):
        raise UserError(f"{file} is no table of fields; replace it")
    return info


def _image_feature(
    root: Path, columns: Sequence[str], info: Mapping[str, Any], image_key: str
) -> tuple[str, bool]:
    """Return the feature of frames, empty without one, and whether videos hold it."""
    features = info.get("features")
    described = features if isinstance(features, dict) else {}
    in_videos = [
        name for name, about in described.items() if isinstance(about, dict) and about.get("dtype") == "video"
    ]
    known = [*(name for name in columns if name.startswith(IMAGE)), *in_videos]
    if image_key == "none":
        return "", False
    if not image_key and (not known or IMAGE in known or len(known) == 1):
        chosen = IMAGE if IMAGE in known else known[0] if known else ""
    elif image_key in known:
        chosen = image_key
    else:
        asked = f"data.image_key = {image_key} is none of them" if image_key else "set data.image_key to one"
        raise UserError(f"{root} has frames of {', '.join(known) or 'no camera'}; {asked}")
    return chosen, chosen in in_videos and chosen not in columns


def _episodes(
    file: Path, columns: Sequence[str], vectors: Sequence[str], image: str
) -> Iterator[tuple[int, Episode]]:
    """Yield number and steps of every episode of a file."""
    wanted = [EPISODE, ACTION, *vectors, *filter(None, [image])]
    wanted += [STEP] if STEP in columns else []
    try:
        table = bounded_table(file, wanted)
    except (MetricError, KeyError) as error:
        raise UserError(f"{file} lacks a column, or is damaged: {error}; replace it") from error
    if not len(table):
        return
    numbers = _integers(table[EPISODE], file, EPISODE)
    steps = _integers(table[STEP], file, STEP) if STEP in columns else None
    action = _vectors(table[ACTION], file, ACTION, numbers)
    parts = [_vectors(table[name], file, name, numbers) for name in vectors]
    state = np.concatenate(parts, axis=1) if parts else None
    encoded = _images(table[image], file, image, numbers) if image else None
    order = np.argsort(numbers, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
        number = int(numbers[rows[0]])
        where = f"{file} episode {number}"
        if steps is not None:
            rows = rows[np.argsort(steps[rows], kind="stable")]
            if not np.array_equal(steps[rows], np.arange(len(rows))):
                raise UserError(
                    f"{where} has no complete {STEP} from 0 to {len(rows) - 1}; replace or remove it"
                )
        frames = None if encoded is None else Frames(images=[encoded[row] for row in rows])
        yield number, Episode(where, action[rows], None if state is None else state[rows], frames)


def _images(column: Any, file: Path, name: str, episodes: np.ndarray) -> list[bytes]:
    """Return the encoded images of a column of `struct<bytes, path>` or binary."""
    found = []
    for row, value in enumerate(column.to_pylist()):
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(encoded, bytes):
            raise UserError(
                f"{file} episode {episodes[row]}: '{name}' has no bytes of an image; embed the images in "
                "the file"
            )
        found.append(encoded)
    return found


def _integers(column: Any, file: Path, name: str) -> np.ndarray:
    values = column.to_numpy()
    if values.dtype.kind not in "iu" or (len(values) and values.min() < 0):
        raise UserError(f"{file}: column '{name}' is {column.type}, expected numbers from 0 without gaps")
    return values.astype(np.int64)


def _vectors(column: Any, file: Path, name: str, episodes: np.ndarray) -> np.ndarray:
    """Return a column of lists of numbers as float32 (N, size).

    Raises `UserError` naming the first episode with a missing list, another width, or a number that is not
    finite.
    """
    import pyarrow as pa

    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    numeric = is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))
    if not numeric:
        raise UserError(f"{file}: column '{name}' is {kind}, expected lists of numbers")
    rows = column.to_pylist()
    width = len(rows[0]) if rows and rows[0] else 0
    for row, values in enumerate(rows):
        where = f"{file} episode {episodes[row]}"
        if not values:
            raise UserError(f"{where} has a step without '{name}'; record it again, or remove the episode")
        if len(values) != width:
            raise UserError(f"{where}: '{name}' has {len(values)} numbers, but {width} at the first step")
        if None in values:
            raise UserError(f"{where}: '{name}' has an empty number; remove the episode")
    if width > WIDEST:
        raise UserError(f"{file}: '{name}' has {width} numbers, expected at most {WIDEST}")
    found = np.array(rows, dtype=np.float64).reshape(len(rows), width)
    with np.errstate(over="ignore"):
        narrow = found.astype(np.float32)
    for row in np.flatnonzero(~np.isfinite(narrow).all(axis=1))[:1]:
        raise UserError(
            f"{file} episode {episodes[row]}: '{name}' has a number that is not finite, in "
            f"{found[row].tolist()}; remove the episode"
        )
    return narrow


def _check_count(root: Path, found: int, info: Mapping[str, Any]) -> None:
    """Raise `UserError` if the set states another number of episodes than were found."""
    stated = info.get("total_episodes", found)
    if isinstance(stated, int) and stated != found:
        raise UserError(
            f"{root} has {found} episodes, but {root / INFO} states total_episodes = {stated}; restore the "
            "missing files, or correct the number"
        )


def _check_widths(episodes: Sequence[Episode]) -> None:
    """Raise `UserError` if an episode has actions or states of another width than the first."""
    for episode in episodes:
        for name in ("action", "state"):
            own, first = (getattr(one, name) for one in (episode, episodes[0]))
            if own is not None and own.shape[1] != first.shape[1]:
                raise UserError(
                    f"{episode.where} has a{'n' * (name == 'action')} {name} of {own.shape[1]} numbers, but "
                    f"{episodes[0].where} of {first.shape[1]}; remove one of them"
                )


def _with_videos(
    root: Path, image: str, episodes: Mapping[int, Episode], info: Mapping[str, Any]
) -> dict[int, Episode]:
    """Return the episodes with their ranges of videos."""
    places = _places(root, image, info) if (root / "meta" / "episodes").is_dir() else None
    found = {}
    for number, episode in episodes.items():
        if places is None:
            chunk = number // max(1, int(_number(info, "chunks_size", 1000)))
            video = root / "videos" / f"chunk-{chunk:03d}" / image / f"episode_{number:06d}.mp4"
            frames = Frames(video=video)
        elif number in places:
            frames = places[number]
        else:
            raise UserError(f"{root / 'meta' / 'episodes'} lacks episode {number}; replace the data set")
        if frames.video is None or not frames.video.is_file():
            raise UserError(f"{episode.where} has no video {frames.video}; restore or remove it")
        found[number] = Episode(episode.where, episode.action, episode.state, frames)
    return found


def _places(root: Path, image: str, info: Mapping[str, Any]) -> dict[int, Frames]:
    """Return the place of each episode in the videos, of version 3.0."""
    fps, prefix = _number(info, "fps", 0), f"videos/{image}/"
    columns = [EPISODE, *(f"{prefix}{name}" for name in ("chunk_index", "file_index", "from_timestamp"))]
    if not fps:
        raise UserError(f"{root / INFO} has no fps, which the videos are read by; add it")
    places = {}
    try:
        for file in parquet_files(root / "meta" / "episodes")[0]:
            table = bounded_table(file, columns)
            rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
            for number, chunk, part, begin in rows:
                video = root / "videos" / image / f"chunk-{int(chunk):03d}" / f"file-{int(part):03d}.mp4"
                places[int(number)] = Frames(video=video, first=round(float(begin) * fps))
    except (MetricError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{root / 'meta' / 'episodes'} does not place the videos: {error}") from error
    return places


def _number(info: Mapping[str, Any], name: str, default: int) -> int | float:
    value = info.get(name, default)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6
    return value if usable else default
