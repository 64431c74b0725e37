"""Demonstrations in LeRobot's layouts, written as LeRobot writes them, with frames that are known."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 8
LENGTHS = (5, 4, 6, 3, 5, 4)
"""Steps of each episode."""


def frame(episode: int, step: int, side: int = SIDE) -> np.ndarray:
    """Return the frame of a step, uint8 (side, side, 3), with its numbers as grey levels."""
    return np.full((side, side, 3), 40 * episode + 5 * step, dtype=np.uint8)


def state(episode: int, step: int) -> list[float]:
    return [episode + 0.5, step / 4]


def action(episode: int, step: int) -> list[float]:
    return [step / 10, episode - 2.0, float(step % 2)]


def png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


# Any: a column of a table.
def rows(episodes: Iterable[int], *, images: bool = True, **changed: Any) -> dict[str, Any]:
    """Return the columns of some episodes; `changed` replaces columns, and None removes one."""
    steps = [(episode, step) for episode in episodes for step in range(LENGTHS[episode])]
    columns: dict[str, Any] = {
        "episode_index": [episode for episode, _ in steps],
        "frame_index": [step for _, step in steps],
        "observation.state": pa.array([state(*one) for one in steps], pa.list_(pa.float32())),
        "action": pa.array([action(*one) for one in steps], pa.list_(pa.float32())),
        "task_index": [0] * len(steps),
    }
    if images:
        columns["observation.image"] = [{"bytes": png(frame(*one)), "path": None} for one in steps]
    changed = {name.replace("_dot_", "."): value for name, value in changed.items()}
    return {name: value for name, value in (columns | changed).items() if value is not None}


def write(folder: Path, columns: dict[str, Any], name: str = "episode_000000") -> Path:
    file = folder / "data" / "chunk-000" / f"{name}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


def write_info(folder: Path, **fields: Any) -> None:
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "meta" / "info.json").write_text(json.dumps({"fps": 10, **fields}))


def demonstrations(folder: Path, *, images: bool = True, task: str = "push") -> Path:
    """Write a file an episode, with frames in it, as version 2.1 does."""
    for episode in range(len(LENGTHS)):
        write(folder, rows([episode], images=images), f"episode_{episode:06d}")
    write_info(folder, codebase_version="v2.1", task=task)
    return folder


def film(file: Path, steps: Sequence[tuple[int, int]], rate: int = 10) -> None:
    """Write the frames of steps as a lossless video."""
    import av

    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as out:
        stream = out.add_stream("libx264rgb", rate=rate, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 16, 16, "rgb24"
        for one in steps:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame(*one, side=16), "rgb24")))
        out.mux(stream.encode())


def as_videos(folder: Path, version: int) -> Path:
    """Write the demonstrations with their frames in videos, as version 2.1 or 3.0 does."""
    key = "observation.images.top"
    write_info(folder, features={key: {"dtype": "video", "shape": [16, 16, 3]}}, chunks_size=1000)
    every = [(episode, step) for episode in range(len(LENGTHS)) for step in range(LENGTHS[episode])]
    if version == 2:
        for episode in range(len(LENGTHS)):
            write(folder, rows([episode], images=False), f"episode_{episode:06d}")
            own = [one for one in every if one[0] == episode]
            film(folder / "videos" / "chunk-000" / key / f"episode_{episode:06d}.mp4", own)
        return folder
    write(folder, rows(range(len(LENGTHS)), images=False), "file-000")
    film(folder / "videos" / key / "chunk-000" / "file-000.mp4", every)
    ends = np.cumsum(LENGTHS)
    begins = [0.0, *(ends[:-1] / 10).tolist()]
    places = {
        "episode_index": list(range(len(LENGTHS))),
        f"videos/{key}/chunk_index": [0] * len(LENGTHS),
        f"videos/{key}/file_index": [0] * len(LENGTHS),
        f"videos/{key}/from_timestamp": begins,
    }
    meta = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    meta.parent.mkdir(parents=True)
    pq.write_table(pa.table(places), meta)
    return folder
