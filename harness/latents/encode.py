"""Samples to a folder of encoded moments, shard by shard: what is whole stays, what is missing or damaged is
made.

A shard's bytes depend on the samples, the codec and the batch size alone (on one kind of device), since every
shard begins its own batches. Under torchrun the processes share the shards.
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
from harness.data.waveforms import read_shape, waves
from harness.errors import UserError
from harness.files.files import held, write_atomic
from harness.latents.codec import Codec
from harness.latents.shards import FORMAT, INDEX, MANIFEST, shard_name, without_places
from harness.runtime.distributed import World
from metrics.files.hashing import sha256_of

BEGUN, LOCK = "encoding.json", "encoding.lock"
LEFT_OVER = (LOCK, f".{BEGUN}.tmp")
"""By a command that was killed before it had begun: no content yet."""
IF_SET = ("frames", "video_weight", "audio_weight")
"""Fields of the source that a manifest has only where they are set: older manifests lack them."""


@dataclass(frozen=True)
class Encoding:
    """What is encoded, with what, and how it is laid out."""

    source: DataSpec
    dataset: Dataset
    codec: Codec
    family: str
    weights: str
    """Where the codec's weights lie; empty for a codec without any."""
    flip: bool
    half: bool
    rows: int
    """Samples in a shard."""
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
        """Raises `UserError` for samples that the codec cannot take."""
        return self.codec.shape(read_shape(self.dataset.shape, self.codec.rate))

    def shards(self) -> list[range]:
        n = len(self.dataset)
        return [range(start, min(start + self.rows, n)) for start in range(0, n, self.rows)]


def check_encodes(family: str, dataset: Dataset, flip: bool) -> None:
    """Raise `UserError` for samples that no codec of a family encodes."""
    codec, there = registry.load("codec", family), dataset.modality
    if there not in codec.modalities:
        fit = [name for name in registry.names("codec") if there in registry.load("codec", name).modalities]
        instead = f"for these there are {', '.join(fit)}" if fit else "no codec here encodes these"
        kinds = ", ".join(codec.modalities)
        raise UserError(f"codec '{family}' encodes {kinds}, and these samples are {there}; {instead}")
    if codec.rate is not None and Capabilities(dataset).wave is None:
        raise UserError(
            f"codec '{family}' encodes waves, and these samples are log-mel pictures alone; take identity"
        )
    if flip and there == "audio":
        raise UserError("--flip mirrors pictures, and these samples are audio; leave it out")


def encode(job: Encoding, folder: Path, world: World, advance: Callable[[int], None]) -> dict[str, Any]:
    """Encode into a folder and return its manifest; `advance` is told of samples that are in whole shards.

    Raises `UserError` where the folder is of another encoding, is being written, or cannot be written.
    """
    try:
        if world.main:
            folder.mkdir(parents=True, exist_ok=True)
        with held(folder / LOCK, str(folder)) if world.main else nullcontext():
            if world.main:
                _begin(folder, job)
            world.wait()
            mine = list(enumerate(job.shards()))[world.rank :: world.size]
            for number, part in mine:
                if not _whole(folder / shard_name(number)):
                    _write_shard(folder / shard_name(number), job, part, world.device, advance)
                else:
                    advance(len(part))
            world.wait()
            return _finish(folder, job) if world.main else {}
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; free the disk, then run the same command"
        ) from error


def _begin(folder: Path, job: Encoding) -> None:
    note = folder / BEGUN
    if not note.exists():
        if any(file.name not in LEFT_OVER for file in folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no encoding to continue; give another --out")
        write_atomic(note, json.dumps(job.about, indent=1).encode())
        return
    begun, asked = (without_places(about) for about in (json.loads(note.read_bytes()), job.about))
    if changed := [name for name in asked if begun.get(name) != asked[name]]:
        raise UserError(
            f"{folder} holds another encoding: {changed[0]} was {begun.get(changed[0])}, now {asked[changed[0]]}; "
            "give another --out"
        )


def _write_shard(
    path: Path, job: Encoding, part: range, device: torch.device, advance: Callable[[int], None]
) -> None:
    """The shard, then its sha256 beside it, which says that it is whole."""
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
    """(n, copies, 2, c, *places) of the samples at these data set indices."""
    x = _read(job, index).to(device)
    copies = [torch.stack(job.codec.encode(seen), dim=1) for seen in ((x, x.flip(-1)) if job.flip else (x,))]
    found = torch.stack(copies, dim=1).float().cpu().numpy()
    found = found.astype("<f2" if job.half else "<f4")
    if not np.isfinite(found).all():
        raise UserError(
            f"the codec's moments of samples {index[0]} to {index[-1]} are not all finite"
            + (" in float16; leave out --half" if job.half else "")
        )
    return found


def _read(job: Encoding, index: np.ndarray) -> torch.Tensor:
    """What the codec reads of these samples, float32 (n, C, *axes) in [-1, 1]."""
    if job.codec.rate is not None:
        return waves(job.dataset, index, job.codec.rate)
    return from_pixels(images(job.dataset, index)[0])


def _finish(folder: Path, job: Encoding) -> dict[str, Any]:
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


def _whole(path: Path) -> bool:
    seal = _seal(path)
    return path.exists() and seal.exists() and seal.read_text() == sha256_of(path)


def _seal(path: Path) -> Path:
    return path.with_suffix(".sha256")
