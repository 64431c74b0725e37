"""The doors of data: what is written, and how the door reads it."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.config.data_spec import DataParts, DataSpec
from harness.data.dataset import Capabilities
from harness.data.found import found_in
from harness.data.parts import without_removed_parts
from harness.errors import UserError
from harness.evaluation.samples.array_file import array_batches, array_fingerprint, open_array
from harness.evaluation.samples.sources import open_source
from metrics.files.recordings import read_audio
from metrics.files.videos import read_videos
from metrics.value import MetricError
from tests.fuzz.door import Door, Files
from tests.harness.data.pictures import LABELS, opened, pixels, png, table_of, with_classes
from tests.harness.data.recorded import film, frames, sound, tone, video
from tests.support.demonstrations import rows


def from_dataset(kind: str, folder: Path, **fields: Any) -> Iterable[float]:
    """Open a data set, and return the numbers of its first samples."""
    data = opened(kind, folder, **fields)
    # What is shown before a run starts, and written to its record.
    found_in(data).line(), found_in(data).row()
    return [number for index in range(min(len(data), 3)) for number in _numbers(data, index)]


# Any: a data set, which may have waves.
def _numbers(data: Any, index: int) -> list[float]:
    sample = data.sample(index)
    assert 0 <= sample.label < data.classes and sample.x.dtype == np.uint8
    return [float(x) for x in data.wave(index)[:100]] if Capabilities(data).has("wave") else []


def from_demonstrations(folder: Path, **fields: Any) -> Iterable[float]:
    """Open demonstrations, and return the numbers of their first samples, with and without actions."""
    spec = DataSpec(name="demos", root=str(folder), **fields)
    both = opened("demos", folder, frames=2), without_removed_parts(opened("demos", folder, **fields), spec)
    return [float(data.sample(index).x.mean()) for data in both for index in range(min(len(data), 3))]


def from_array(name: str, folder: Path) -> Iterable[float]:
    array = open_array(folder / name)
    array_fingerprint(array)
    return [float(batch.mean()) for batch in array_batches(array, 4)]


def from_media(modality: str, folder: Path) -> Iterable[float]:
    """Read samples as `flowrace eval` does."""
    try:
        source = open_source(str(folder), modality, DataSpec())
        assert source.found is None or source.found.line()
        if modality == "video":
            return [float(clip.float().mean()) for clip in read_videos(folder, 4)]
        return [float(x) for sound in read_audio(folder, 8000) for x in sound.samples[:100]]
    # `score` turns it into the other.
    except MetricError as error:
        raise UserError(str(error)) from error


def npz(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def npy() -> bytes:
    content = io.BytesIO()
    np.save(content, pixels())
    return content.getvalue()


def idx() -> Files:
    x, y = pixels(channels=1)[..., 0], LABELS.astype(np.uint8)
    head = [bytes((0, 0, 8, a.ndim)) + np.array(a.shape, ">u4").tobytes() + a.tobytes() for a in (x, y)]
    return {"train-images-idx3-ubyte": head[0], "train-labels-idx1-ubyte.gz": gzip.compress(head[1], mtime=0)}


def parquet(column: str = "image", cells: Iterable[bytes] | None = None) -> bytes:
    encoded = [png(image) for image in pixels()] if cells is None else list(cells)
    table = with_classes(table_of(encoded, LABELS[: len(encoded)], column), label=["a", "b", "c"])
    content = io.BytesIO()
    pq.write_table(table, content, compression="none")
    return content.getvalue()


def folder() -> Files:
    forms = ("PNG", "JPEG", "WEBP", "BMP")
    return {
        f"{'ab'[number % 2]}/{number}.{form.lower()}": png(image, form)
        for number, (image, form) in enumerate(zip(pixels(4), forms, strict=True))
    }


def with_table(name: str, text: str) -> Files:
    return {"0.png": png(pixels()[0]), "1.png": png(pixels()[1]), name: text.encode()}


CSV = "file_name,label\n0.png,cat\n1.png,dog\n"
JSONL = '{"file_name": "0.png", "label": 3}\n{"file_name": "1.png", "label": "dog"}\n'
EDM = '{"labels": [["0.png", 0], ["1.png", 1]]}'


def sounds() -> Files:
    return {
        "a/0.wav": sound(tone(2000)),
        "b/1.flac": sound(tone(2000), format="FLAC"),
        "b/2.ogg": sound(tone(2000), format="OGG", subtype="VORBIS"),
    }


def videos() -> Files:
    return {
        "a/0.mkv": video(frames(4, 16, 16)),
        "b/1.mp4": video(frames(4, 16, 16), "mp4", "mpeg4", "yuv420p"),
        "b/2.avi": video(frames(4, 16, 16), "avi"),
        "b/3.gif": video(frames(4, 16, 16), "gif", "gif", "rgb8"),
    }


def films() -> Files:
    return {"a/0.mkv": film(frames(4), tone(2048)), "b/1.mkv": film(frames(8), tone(4096))}


def media_parquet() -> Files:
    return {"a.parquet": parquet("audio", [sound(tone(1500)), sound(tone(1500), 16_000)])}


def demonstrations() -> Files:
    content = io.BytesIO()
    pq.write_table(pa.table(rows([0, 1, 2])), content, compression="none")
    return {"data/chunk-000/episode_000000.parquet": content.getvalue(), "meta/info.json": b'{"fps": 10}'}


VIDEOS_ALONE = DataParts.model_validate({"state": {"weight": 0.0}, "action": {"weight": 0.0}})
DATA = (
    Door(
        "npz", lambda: {"a.npz": npz(images=pixels(), labels=LABELS)}, partial(from_dataset, "npz"), cases=30
    ),
    Door("npz of samples", lambda: {"a.npz": npz(arr_0=pixels())}, partial(from_array, "a.npz")),
    Door("npy of samples", lambda: {"a.npy": npy()}, partial(from_array, "a.npy")),
    Door("idx", idx, partial(from_dataset, "idx")),
    Door("parquet", lambda: {"a.parquet": parquet()}, partial(from_dataset, "parquet")),
    Door("parquet of recordings", media_parquet, partial(from_dataset, "sounds", frames=8)),
    Door("folder of images", folder, partial(from_dataset, "folder", resolution=8)),
    Door("metadata.csv", lambda: with_table("metadata.csv", CSV), partial(from_dataset, "folder"), True),
    Door(
        "metadata.jsonl", lambda: with_table("metadata.jsonl", JSONL), partial(from_dataset, "folder"), True
    ),
    Door("dataset.json", lambda: with_table("dataset.json", EDM), partial(from_dataset, "folder"), True),
    Door("sounds", sounds, partial(from_dataset, "sounds", frames=8)),
    Door("videos", videos, partial(from_dataset, "videos", frames=2, resolution=8)),
    Door("films", films, partial(from_dataset, "films", frames=2)),
    Door("demonstrations", demonstrations, partial(from_demonstrations, parts=VIDEOS_ALONE, frames=2)),
    Door("sounds of an evaluation", sounds, partial(from_media, "audio")),
    Door("videos of an evaluation", videos, partial(from_media, "video")),
)
