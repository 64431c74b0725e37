"""Writing of a folder of moments, shard by shard; complete shards are kept when resuming.

The moments are those of a codec, or those of files that other code has encoded (importing.py).

On one kind of device, the bytes of a shard depend only on the samples, the codec and the batch size, because
batches do not cross shards. Under torchrun the shards are split over ranks.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from harness.config import registry
from harness.config.data_spec import DataSpec
from harness.data.dataset import Capabilities, Dataset, label_of
from harness.data.open import from_pixels, images
from harness.data.waveforms import codec_input_shape, read_waves
from harness.errors import UserError
from harness.files.files import held, replacing, write_atomic
from harness.files.parse import parse_json
from harness.files.progress import progress_bar
from harness.latents.captions import TEXT_INDEX, TEXTS, caption_files
from harness.latents.codec import Codec
from harness.latents.shards import FORMAT, INDEX, MANIFEST, shard_name, without_places
from harness.runtime.distributed import World
from metrics.files.hashing import sha256_of

BEGUN, LOCK = "encoding.json", "encoding.lock"
LEFT_OVER = (LOCK, f".{BEGUN}.tmp")
"""Files of a command that was killed before it wrote any content."""
IF_SET = ("frames", "video_weight", "audio_weight", "caption_key")
"""Fields of the source that a manifest has only if they are set, because older manifests lack them."""


class Job(Protocol):
    """Moments to be written into a folder: those of an encoder, or those of imported files."""

    @property
    def about(self) -> dict[str, Any]:
        """The manifest without its files."""
        ...

    def shards(self) -> list[range]:
        """Return the samples of each shard."""
        ...

    @property
    def record(self) -> tuple[int, ...]:
        """(copies, parts, c, *places) of a sample as it is stored."""
        ...

    @property
    def dtype(self) -> np.dtype: ...

    def moments(self, part: range, device: torch.device) -> Iterator[np.ndarray]:
        """Yield the records (n, *record) of some samples in order, a batch at a time."""
        ...

    def labels(self) -> np.ndarray:
        """Return the labels of all samples, int64 (N,)."""
        ...

    def keys(self) -> list[bytes]:
        """Return the bytes that assign each sample to a side of the split."""
        ...

    def staged(self) -> dict[str, Callable[[], bytes]]:
        """Return the content of files by name that ranks write in parallel for `further`; they are removed at
        the end."""
        ...

    def further(self) -> dict[str, Callable[[Path], bytes]]:
        """Return the content of files about captions by name, from the folder with the staged files. They are
        written before the shards."""
        ...

    def closing(self) -> dict[str, Any]:
        """Return fields of the manifest that are computed when all shards are complete."""
        ...


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
            **({"holds": "sample"} if self.parts == 1 else {}),
            "dtype": "float16" if self.half else "float32",
            "rows": self.rows,
            "batch": self.batch,
        }

    @property
    def parts(self) -> int:
        """2 for mean and standard deviation, 1 for a codec without a posterior."""
        return 1 if getattr(self.codec, "deterministic", False) else 2

    def latent_shape(self) -> tuple[int, ...]:
        """Return the shape of a latent. Raises `UserError` for samples that the codec cannot encode."""
        return self.codec.shape(codec_input_shape(self.dataset.shape, self.codec.rate))

    def shards(self) -> list[range]:
        return shards_of(len(self.dataset), self.rows)

    @property
    def record(self) -> tuple[int, ...]:
        return (2 if self.flip else 1, self.parts, *self.latent_shape())

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<f2" if self.half else "<f4")

    def moments(self, part: range, device: torch.device) -> Iterator[np.ndarray]:
        for start in range(part.start, part.stop, self.batch):
            yield _moments(self, np.arange(start, min(start + self.batch, part.stop)), device)

    def labels(self) -> np.ndarray:
        return np.array([label_of(self.dataset, i) for i in range(len(self.dataset))], dtype=np.int64)

    def keys(self) -> list[bytes]:
        return [self.dataset.key(i) for i in range(len(self.dataset))]

    def staged(self) -> dict[str, Callable[[], bytes]]:
        return {}

    def further(self) -> dict[str, Callable[[Path], bytes]]:
        if (captions := Capabilities(self.dataset).captions) is None:
            return {}
        # All captions are read only if a file is written, and once for both.
        files = cache(lambda: caption_files(map(captions, range(len(self.dataset)))))
        return {TEXTS: lambda _: files()[TEXTS], TEXT_INDEX: lambda _: files()[TEXT_INDEX]}

    def closing(self) -> dict[str, Any]:
        return {}


def shards_of(samples: int, rows: int) -> list[range]:
    """Return the samples of each shard of at most `rows` samples."""
    return [range(start, min(start + rows, samples)) for start in range(0, samples, rows)]


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


def encode(job: Job, folder: Path, world: World, advance: Callable[[int], None]) -> dict[str, Any]:
    """Encode into a folder and return its manifest, on other ranks than 0 an empty one.

    `advance` is called with the number of samples of each batch that was encoded or found complete. Raises
    `UserError` if the folder holds another encoding, is in use, or cannot be written.
    """
    is_new, begins = not folder.exists(), False
    try:
        if world.main:
            folder.mkdir(parents=True, exist_ok=True)
        with held(folder / LOCK, str(folder)) if world.main else nullcontext():
            try:
                if world.main:
                    begins = _begin(folder, job)
                world.wait()
                _write_staged(folder, job, world)
                world.wait()
                if world.main:
                    _write_further(folder, job)
                local = list(enumerate(job.shards()))[world.rank :: world.size]
                for number, part in local:
                    if _is_complete(folder / shard_name(number)):
                        advance(len(part))
                    else:
                        _write_shard(folder / shard_name(number), job, part, world.device, advance)
                world.wait()
                return _finish(folder, job) if world.main else {}
            except UserError:
                # Other ranks may be writing shards, whose note must stay.
                if begins and world.size == 1:
                    _remove_if_empty(folder, job)
                raise
    except UserError:
        if is_new and world.main:
            with suppress(OSError):
                folder.rmdir()
        raise
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; free disk space, then run the same command again"
        ) from error


def _write_staged(folder: Path, job: Job, world: World) -> None:
    """Write this rank's share of the staged files, except those of an earlier command that was killed."""
    if all((folder / name).exists() for name in job.further()):
        return
    local = list(job.staged().items())[world.rank :: world.size]
    with progress_bar(len(local) if world.main else 0, "reading states of captions") as advance:
        for name, content in local:
            if not (folder / name).exists():
                write_atomic(folder / name, content())
            advance(1)


def _write_further(folder: Path, job: Job) -> None:
    """Write the files about captions, except those of an earlier command that was killed."""
    for name, content in job.further().items():
        if not (folder / name).exists():
            write_atomic(folder / name, content(folder))


def _remove_if_empty(folder: Path, job: Job) -> None:
    """Remove what a command has written that has completed no shard and no staged file, so that a refusal
    leaves nothing."""
    if not any(folder.glob("*.sha256")) and not any((folder / name).exists() for name in job.staged()):
        with suppress(OSError):
            for name in (*job.further(), BEGUN):
                (folder / name).unlink(missing_ok=True)


def _begin(folder: Path, job: Job) -> bool:
    """Record what is being encoded, or check that the folder continues the same encoding.

    Return whether it is new.
    """
    note = folder / BEGUN
    if not note.exists():
        if any(file.name not in LEFT_OVER for file in folder.iterdir()):
            raise UserError(f"{folder} is not empty and holds no encoding to continue; choose another --out")
        write_atomic(note, json.dumps(job.about, indent=1).encode())
        return True
    begun, requested = (without_places(about) for about in (parse_json(note.read_bytes()), job.about))
    names = dict.fromkeys((*requested, *begun))
    if changed := [name for name in names if begun.get(name) != requested.get(name)]:
        raise UserError(
            f"{folder} holds another encoding: {changed[0]} was {begun.get(changed[0])}, is now "
            f"{requested.get(changed[0])}; choose another --out"
        )
    return False


def _write_shard(
    path: Path, job: Job, part: range, device: torch.device, advance: Callable[[int], None]
) -> None:
    """Write a shard batch by batch, then a file with its sha256, which marks it as complete."""
    head = {
        "descr": np.lib.format.dtype_to_descr(job.dtype),
        "fortran_order": False,
        "shape": (len(part), *job.record),
    }
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, head)
        for records in job.moments(part, device):
            file.write(np.ascontiguousarray(records).data)
            advance(len(records))
    write_atomic(_seal(path), sha256_of(path).encode())


def _moments(job: Encoding, index: np.ndarray, device: torch.device) -> np.ndarray:
    """Return moments (n, copies, parts, c, *places) of the samples at these data set indices."""
    x = _read(job, index).to(device)
    versions = (x, x.flip(-1)) if job.flip else (x,)
    copies = [torch.stack(job.codec.encode(version)[: job.parts], dim=1) for version in versions]
    moments = torch.stack(copies, dim=1).float().cpu().numpy()
    moments = moments.astype(job.dtype)
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


def _finish(folder: Path, job: Job) -> dict[str, Any]:
    """Write the index and the manifest, and return the manifest."""
    keys, buffer = job.keys(), io.BytesIO()
    joined = np.frombuffer(b"".join(keys), dtype=np.uint8)
    np.savez(buffer, labels=job.labels(), keys=joined, ends=np.cumsum([len(key) for key in keys]))
    write_atomic(folder / INDEX, buffer.getvalue())
    names = [shard_name(number) for number in range(len(job.shards()))]
    files = {name: _seal(folder / name).read_text() for name in names}
    files[INDEX] = sha256_of(folder / INDEX)
    files |= {name: sha256_of(folder / name) for name in job.further()}
    manifest = job.about | job.closing() | {"files": files}
    # A folder with a manifest is complete, and no command cleans it up.
    for name in job.staged():
        (folder / name).unlink(missing_ok=True)
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def _is_complete(path: Path) -> bool:
    seal = _seal(path)
    return path.exists() and seal.exists() and seal.read_text() == sha256_of(path)


def _seal(path: Path) -> Path:
    return path.with_suffix(".sha256")
