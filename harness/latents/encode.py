"""Encoding of a data set into a folder of moments, shard by shard; complete shards are kept when resuming.

On one kind of device, the bytes of a shard depend only on the samples, the codec and the batch size, because
batches do not cross shards. Under torchrun the shards are split over ranks.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.config import registry
from harness.config.spec import DataSpec
from harness.data.dataset import Capabilities, Dataset, label_of
from harness.data.open import from_pixels, images
from harness.data.waveforms import codec_input_shape, read_waves
from harness.errors import UserError
from harness.files.files import held, write_atomic
from harness.files.parse import parse_json
from harness.latents.codec import Codec
from harness.latents.shards import FORMAT, INDEX, MANIFEST, shard_name, without_places
from harness.runtime.distributed import World
from metrics.files.hashing import sha256_of

BEGUN, LOCK = "encoding.json", "encoding.lock"
LEFT_OVER = (LOCK, f".{BEGUN}.tmp")
"""Files of a command that was killed before it wrote any content."""
IF_SET = ("frames", "video_weight", "audio_weight")
"""Fields of the source that a manifest has only if they are set, because older manifests lack them."""


@dataclass(frozen=True)
class Encoding:
    """An encoding job: source, codec and layout of the shards."""

    source: DataSpec
    dataset: Dataset
    codec: Codec
    family: str
    weights: str
    """Location of the codec's weights, "" for a codec without weights."""
    flip: bool
    half: bool
    rows: int
    """Samples per shard."""
    batch: int

    @property
    def about(self) -> dict[str, Any]:
        """The manifest without its files."""
        fields = ("name", "resolution", "channels", "image_key", "label_key")
        source = {name: value for name in fields if (value := getattr(self.source, name)) is not None}
        given = self.source.model_dump(exclude_defaults=True)
        source |= {name: given[name] for name in IF_SET if name in given}
        root = str(Path(self.source.root).expanduser().resolve()) if self.source.root else ""
        weights = str(Path(self.weights).resolve()) if self.weights else ""
        codec = {"name": self.family, "sha256": self.codec.sha256} | self.codec.affine.to_json()
        return {
            "format": FORMAT,
            **({"modality": modality} if (modality := self.dataset.modality) != "image" else {}),
            "codec": codec | {"weights": weights},
            "source": source | {"fingerprint": self.dataset.fingerprint, "root": root},
            "samples": len(self.dataset),
            "classes": self.dataset.classes,
            "pixels": list(self.dataset.shape),
            "shape": list(self.latent_shape()),
            "copies": 2 if self.flip else 1,
            "dtype": "float16" if self.half else "float32",
            "rows": self.rows,
            "batch": self.batch,
        }

    def latent_shape(self) -> tuple[int, ...]:
        """Return the shape of a latent. Raises `UserError` for samples that the codec cannot encode."""
        return self.codec.shape(codec_input_shape(self.dataset.shape, self.codec.rate))

    def shards(self) -> list[range]:
        n = len(self.dataset)
        return [range(start, min(start + self.rows, n)) for start in range(0, n, self.rows)]


def check_encodes(family: str, dataset: Dataset, flip: bool) -> None:
    """Raise `UserError` for samples that no codec of a family encodes."""
    codec, modality = registry.load("codec", family), dataset.modality
    if modality not in codec.modalities:
        suited = [
            name for name in registry.names("codec") if modality in registry.load("codec", name).modalities
        ]
        hint = f"use {' or '.join(suited)}" if suited else "no codec encodes them"
        kinds = ", ".join(codec.modalities)
        raise UserError(f"codec '{family}' encodes {kinds}, but these samples are {modality}; {hint}")
    if codec.rate is not None and Capabilities(dataset).wave is None:
        raise UserError(
            f"codec '{family}' encodes waveforms, but these samples only have log-mel spectrograms; use "
            "identity"
        )
    if flip and modality == "audio":
        raise UserError("--flip mirrors images and videos, but these samples are audio; leave it out")


def encode(job: Encoding, folder: Path, world: World, advance: Callable[[int], None]) -> dict[str, Any]:
    """Encode into a folder and return its manifest, on other ranks than 0 an empty one.

    `advance` is called with the number of samples of each batch that was encoded or found complete. Raises
    `UserError` if the folder holds another encoding, is in use, or cannot be written.
    """
    try:
        if world.main:
            folder.mkdir(parents=True, exist_ok=True)
        with held(folder / LOCK, str(folder)) if world.main else nullcontext():
            if world.main:
                _begin(folder, job)
            world.wait()
            local = list(enumerate(job.shards()))[world.rank :: world.size]
            for number, part in local:
                if _is_complete(folder / shard_name(number)):
                    advance(len(part))
                else:
                    _write_shard(folder / shard_name(number), job, part, world.device, advance)
            world.wait()
            return _finish(folder, job) if world.main else {}
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; free disk space, then run the same command again"
        ) from error


def _begin(folder: Path, job: Encoding) -> None:
    """Record what is being encoded, or check that the folder continues the same encoding."""
    note = folder / BEGUN
    if not note.exists():
        if any(file.name not in LEFT_OVER for file in folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no encoding to continue; choose another --out")
        write_atomic(note, json.dumps(job.about, indent=1).encode())
        return
    begun, requested = (without_places(about) for about in (parse_json(note.read_bytes()), job.about))
    if changed := [name for name in requested if begun.get(name) != requested[name]]:
        raise UserError(
            f"{folder} holds another encoding: {changed[0]} was {begun.get(changed[0])}, is now "
            f"{requested[changed[0]]}; choose another --out"
        )


def _write_shard(
    path: Path, job: Encoding, part: range, device: torch.device, advance: Callable[[int], None]
) -> None:
    """Write a shard, then a file with its sha256, which marks it as complete."""
    rows = []
    for start in range(part.start, part.stop, job.batch):
        index = np.arange(start, min(start + job.batch, part.stop))
        rows.append(_moments(job, index, device))
        advance(len(index))
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(rows), allow_pickle=False)
    write_atomic(path, buffer.getvalue())
    write_atomic(_seal(path), sha256_of(path).encode())


def _moments(job: Encoding, index: np.ndarray, device: torch.device) -> np.ndarray:
    """Return moments (n, copies, 2, c, *places) of the samples at these data set indices."""
    x = _read(job, index).to(device)
    versions = (x, x.flip(-1)) if job.flip else (x,)
    copies = [torch.stack(job.codec.encode(version), dim=1) for version in versions]
    moments = torch.stack(copies, dim=1).float().cpu().numpy()
    moments = moments.astype("<f2" if job.half else "<f4")
    if not np.isfinite(moments).all():
        raise UserError(
            f"the codec's moments of samples {index[0]} to {index[-1]} are not all finite"
            + (" in float16; leave out --half" if job.half else "")
        )
    return moments


def _read(job: Encoding, index: np.ndarray) -> torch.Tensor:
    """Return the inputs of the codec for these samples, float32 (n, C, *axes) in [-1, 1]."""
    if job.codec.rate is not None:
        return read_waves(job.dataset, index, job.codec.rate)
    return from_pixels(images(job.dataset, index)[0])


def _finish(folder: Path, job: Encoding) -> dict[str, Any]:
    """Write the index and the manifest, and return the manifest."""
    labels = np.array([label_of(job.dataset, i) for i in range(len(job.dataset))], dtype=np.int64)
    keys = [job.dataset.key(i) for i in range(len(job.dataset))]
    buffer = io.BytesIO()
    joined = np.frombuffer(b"".join(keys), dtype=np.uint8)
    np.savez(buffer, labels=labels, keys=joined, ends=np.cumsum([len(key) for key in keys]))
    write_atomic(folder / INDEX, buffer.getvalue())
    names = [shard_name(number) for number in range(len(job.shards()))]
    files = {name: _seal(folder / name).read_text() for name in names}
    files[INDEX] = sha256_of(folder / INDEX)
    manifest = job.about | {"files": files}
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def _is_complete(path: Path) -> bool:
    seal = _seal(path)
    return path.exists() and seal.exists() and seal.read_text() == sha256_of(path)


def _seal(path: Path) -> Path:
    return path.with_suffix(".sha256")
