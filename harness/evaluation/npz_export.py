"""Export of samples to one npz in ADM's layout, resumable and by any number of ranks.

Batches cover fixed ranges of sample numbers. The ranks draw them interleaved and store them next to the
output until all exist. So an interrupted export gives the same bytes as an uninterrupted one. `arr_0` is
uint8 (N, H, W, C); with classes, `arr_1` is int64 (N,).
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.evaluation_spec import EvalSpec
from harness.errors import UserError
from harness.evaluation.conditions import Conditions
from harness.files.files import replacing, take_lock, write_atomic
from harness.files.parse import parse_json
from harness.files.progress import progress_bar
from harness.flow.samplers import Rule, plain
from harness.flow.sampling import Decode, Sampling, draw_batch
from harness.records.record import LOCK
from harness.runtime.distributed import World

JOB = "job.json"
NOT_DRAWN = {"every", "metrics", "grid", "replicates", "weights"}
"""Fields of `eval` that samples do not depend on."""


class Job(NamedTuple):
    """The inputs that determine the bytes of the file."""

    model: str
    """The sha256 of the checkpoint file."""
    spec: EvalSpec
    shape: tuple[int, ...]
    classes: int
    only: tuple[int, ...]
    """The classes to draw from; empty for all."""
    latent: tuple[int, ...] | None = None
    """The shape of a latent, if the network draws latents."""
    codec: str = ""
    """The sha256 of the codec that decodes the latents."""
    text: str = ""
    """The encoder and the choice of the samples' captions, as JSON; empty for labels."""

    @property
    def drawn(self) -> tuple[int, ...]:
        """Return the shape of the network's samples: latents or images."""
        return self.latent or self.shape

    @property
    def digest(self) -> str:
        """Return 16 hex digits over everything that the bytes of the file depend on."""
        unset = set() if self.latent else {"latent", "codec"}
        unset |= set() if self.text else {"text"}
        fields = {
            **{name: value for name, value in self._asdict().items() if name not in unset},
            "spec": self.spec.model_dump(exclude=NOT_DRAWN | self.spec.unset),
        }
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]

    def ranges(self) -> list[range]:
        n, size = self.spec.samples, self.spec.batch_size
        return [range(start, min(start + size, n)) for start in range(0, n, size)]


def check_classes(only: tuple[int, ...], classes: int) -> None:
    """Raise `UserError` for a class of `--classes` that the run does not have."""
    for label in only:
        if not 0 <= label < classes:
            raise UserError(f"--classes {label}: this run has classes 0 .. {classes - 1}")


def draw_bulk(
    model: nn.Module,
    job: Job,
    conditions: Conditions,
    output: Path,
    world: World,
    decode: Decode | None = None,
    rule: Rule = plain,
) -> None:
    """Draw the samples of a job into `output`, resuming from existing batches.

    Raises `UserError` if the folder of batches belongs to another job, is in use, or cannot be written.
    """
    folder = output.with_name(f"{output.name}.parts")
    try:
        with _claimed(folder, job) if world.main else nullcontext():
            _draw(model, job, conditions, output, folder, world, decode, rule)
        if world.main:
            # Only after the lock is released, because a network file system does not remove an open file.
            shutil.rmtree(folder)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or output}: {error.strerror}") from error


def _draw(
    model: nn.Module,
    job: Job,
    conditions: Conditions,
    output: Path,
    folder: Path,
    world: World,
    decode: Decode | None,
    rule: Rule,
) -> None:
    world.wait()
    own_ranges = job.ranges()[world.rank :: world.size]
    missing = [part for part in own_ranges if not _is_complete(folder, part, job)]
    total = sum(map(len, own_ranges))
    done = total - sum(map(len, missing))
    with progress_bar(total, "", done=done, unit="samples", hidden=not world.main) as advance:
        for part in missing:
            index = np.arange(part.start, part.stop)
            sampling = Sampling(
                job.spec, job.drawn, conditions.null, world.device, decode, rule, conditions.given
            )
            _store(folder, part, draw_batch(model, sampling, index, conditions.condition(index)))
            advance(len(part))
    world.wait()
    if world.main:
        _write(output, folder, job, conditions)


@contextmanager
def _claimed(folder: Path, job: Job) -> Iterator[None]:
    """Create the folder of a job's batches and lock it."""
    folder.mkdir(parents=True, exist_ok=True)
    with take_lock(folder / LOCK, str(folder)):
        _begin(folder, job)
        yield


def _begin(folder: Path, job: Job) -> None:
    """Record the job in the folder of batches; raises `UserError` if it belongs to another."""
    note = folder / JOB
    if not note.exists():
        write_atomic(note, json.dumps({"job": job.digest}).encode())
        return
    try:
        recorded = parse_json(note.read_bytes()).get("job")
    except (ValueError, AttributeError):
        recorded = None
    if recorded != job.digest:
        raise UserError(
            f"{folder} holds batches of other samples (another run, step, number or setting): "
            "remove it, or choose another output"
        )


def _name(folder: Path, part: range) -> Path:
    return folder / f"{part.start:09d}-{part.stop:09d}.npy"


def _store(folder: Path, part: range, drawn: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(drawn.permute(0, 2, 3, 1).numpy()), allow_pickle=False)
    write_atomic(_name(folder, part), buffer.getvalue())


def _is_complete(folder: Path, part: range, job: Job) -> bool:
    """Return whether the batch is on disk, complete."""
    try:
        found = np.load(_name(folder, part), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    channels, height, width = job.shape
    return found.shape == (len(part), height, width, channels) and found.dtype == np.uint8


def _write(output: Path, folder: Path, job: Job, conditions: Conditions) -> None:
    """Join the batches into one file, atomically and without timestamps."""
    channels, height, width = job.shape
    with replacing(output) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as content:
            _header(content, (job.spec.samples, height, width, channels), "|u1")
            for part in job.ranges():
                content.write(np.load(_name(folder, part), allow_pickle=False).tobytes())
        if job.classes > 1:
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as content:
                labels = [conditions.labels(np.arange(part.start, part.stop)) for part in job.ranges()]
                _header(content, (job.spec.samples,), "<i8")
                content.write(torch.cat(labels).numpy().astype("<i8").tobytes())


def _header(content: Any, shape: tuple[int, ...], dtype: str) -> None:
    np.lib.format.write_array_header_1_0(content, {"descr": dtype, "fortran_order": False, "shape": shape})
