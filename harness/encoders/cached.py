"""Cached features of a frozen encoder: computed once for a data set, then read from a memory-mapped file.

The file is float32 (N, T, dim) and takes 4 N T dim bytes. N is the size of the data set, and row i holds the
tokens of sample i. Its name is a hash of everything that its numbers depend on. That is the inner encoder and
its weights, the data's fingerprint and shape, the grid, the device and the autocast type. The hash also
covers the features of the first samples, which the encoder computes at each start. So a transform, kernel or
thread count that changes a bit of those gets another file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.config import registry
from harness.config.spec import RunSpec
from harness.data.dataset import Dataset, content_of
from harness.data.open import images
from harness.encoders.base import (
    Architecture,
    Choice,
    Encoder,
    EncoderChoice,
    Viewer,
    check_weights,
    open_encoder,
    parse_name,
)
from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.files.files import locked, replacing, write_atomic
from harness.flow.batch import View
from metrics.files.hashing import sha256_of

BATCH = 64
"""Images in one pass while the file is written."""
PROBE = 16
"""Samples whose features are computed again at each start."""


class CachedEncoder(Viewer):
    """Any other encoder with its features stored on disk, for example `cached:local:small`.

    A training step costs no encoder FLOPs (`flops` is 0). The first run that needs the file pays for it once,
    in its first step, booked as warm-up. This costs the inner encoder's `flops` times the number of samples
    (`one_off_flops`), which a comparison of total cost has to add. Images must not change from epoch to
    epoch, so flips are not allowed.

    Rows are computed in passes of `BATCH` images. They have the bits of an online pass if the kernels round
    independently of the number of images, as they do on the CPU. Otherwise they have the bits of a pass over
    `BATCH` images.
    """

    flops = 0

    def __init__(
        self,
        choice: EncoderChoice,
        dataset: Dataset,
        *,
        grid: tuple[int, int],
        held_out: float,
        device: torch.device,
    ) -> None:
        inner = _inner(choice)
        self.inner: Encoder = open_encoder(inner, dataset, grid=grid, held_out=held_out, device=device)
        self.name, self.grid, self.dim, self.heads = choice.name, grid, self.inner.dim, 0
        self.params, self.sha256, self.accuracy = self.inner.params, self.inner.sha256, self.inner.accuracy
        self.r2 = getattr(self.inner, "r2", None)
        self.one_off_flops = self.inner.flops * len(dataset)
        self._dataset, self._device = dataset, device
        self._tables: dict[str, np.ndarray] = {}

    @staticmethod
    def architecture(model: str, shape: tuple[int, ...], classes: int, grid: tuple[int, int]) -> Architecture:
        """Return the inner encoder's width, without FLOPs, because a step costs none."""
        _refuse_nesting(model)
        family, name = parse_name(model)
        inner = registry.load("encoder", family).architecture(name, shape, classes, grid)
        return Architecture(inner.dim, 0)

    @staticmethod
    def check_weights(choice: EncoderChoice) -> None:
        """Raise `UserError` if the inner encoder's weights are not on this machine: each start reads them."""
        check_weights(_inner(choice))

    def view(self, images: Tensor, *, summary: bool = False, attention: int = 0) -> View:
        """Return the inner encoder's view of images that need not be in the data set."""
        return self.inner.view(images, summary=summary, attention=attention)

    def view_at(
        self, index: np.ndarray, images: Tensor, *, summary: bool = False, attention: int = 0
    ) -> View:
        """Return stored tokens, float32 (B, T, dim) on the images' device, of the samples at indices (B,).

        The first call writes or verifies the file under the caller's autocast, so that the stored numbers
        equal those of an online pass at this point. Raises `UserError` for a summary or attention.
        """
        if summary or attention:
            raise UserError(
                f"encoder '{self.name}' stores tokens only, but this method needs a summary or attention; "
                f"use '{self.inner.name}'"
            )
        kind = autocast_type(self._device)
        if kind not in self._tables:
            self._tables[kind] = self._open(kind)
        return View(torch.from_numpy(self._tables[kind][index]).to(images.device))

    def _open(self, kind: str) -> np.ndarray:
        probe = _encode(self, np.arange(min(PROBE, len(self._dataset))))
        shape = (len(self._dataset), *probe.shape[1:])
        parts = [
            *(self.inner.name, self.sha256, content_of(self._dataset), self._dataset.shape, self.grid),
            *(self._device.type, kind, hashlib.sha256(probe.tobytes()).hexdigest()),
        ]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
        file = cache_dir("features") / f"{key}.npy"
        with locked(file):
            table = read(file, shape)
            if table is None:
                write(file, self, shape)
                table = read(file, shape)
        if table is None:
            raise UserError(f"the features in {file} differ from what was written; check the disk")
        return table


def check_cached(spec: RunSpec) -> None:
    """Raise `UserError` for cached features with `data.flip`, which mirrors other images in every epoch."""
    for encoder in spec.method.needs().encoders:
        if spec.data.flip and encoder.name.startswith("cached:"):
            raise UserError(
                f"method.encoder '{encoder.name}' stores one set of features for each image, but data.flip = "
                "true mirrors half of them; set data.flip=false, or compute features in each step with "
                f"'{parse_name(encoder.name)[1]}'"
            )


def write(file: Path, encoder: CachedEncoder, shape: tuple[int, ...]) -> None:
    """Compute all rows, (N, T, dim), into a temporary file, and rename it when it is complete.

    Its checksum is written to `<name>.sha256` before that. Raises `UserError` if writing fails, after
    removing the temporary file.
    """
    try:
        with replacing(file) as temporary:
            with open(temporary, "wb") as out:
                head = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(out, head)
                for start in range(0, shape[0], BATCH):
                    out.write(_encode(encoder, np.arange(start, min(start + BATCH, shape[0]))).tobytes())
            write_atomic(_sum_of(file), sha256_of(temporary).encode())
    except OSError as error:
        raise UserError(
            f"cannot write the features {file}: {error.strerror}; free some disk space, set FLOWRACE_CACHE "
            f"to another folder, or use '{encoder.inner.name}' without cached:"
        ) from error


def read(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the table, memory-mapped and verified by its checksum, or None if it is missing or damaged."""
    try:
        if _sum_of(file).read_text() != sha256_of(file):
            return None
        table = np.load(file, mmap_mode="r", allow_pickle=False)
    # ValueError: a checksum that is not text, or a broken header.
    except (OSError, ValueError):
        return None
    return table if table.shape == shape and table.dtype == np.float32 else None


def autocast_type(device: torch.device) -> str:
    """Return the data type of matrix products at this point: float32, or that of autocast."""
    if not torch.is_autocast_enabled(device.type):
        return "float32"
    return str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")


def _encode(encoder: CachedEncoder, index: np.ndarray) -> np.ndarray:
    """Compute the inner encoder's features of samples, scaled as in training."""
    pixels = torch.from_numpy(images(encoder._dataset, index)[0]).float().div_(127.5).sub_(1)
    return encoder.inner.features(pixels.to(encoder._device)).cpu().numpy().astype("<f4", copy=False)


def _sum_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _inner(choice: EncoderChoice) -> Choice:
    inner = Choice(parse_name(choice.name)[1], choice.weights, choice.sha256, choice.download)
    _refuse_nesting(inner.name)
    return inner


def _refuse_nesting(inner: str) -> None:
    family = parse_name(inner)[0]
    if family == "cached":
        raise UserError(f"encoder 'cached:{inner}' is cached twice; write '{inner}'")
    if getattr(registry.load("encoder", family), "reads_samples", False):
        raise UserError(
            f"encoder 'cached:{inner}' stores features of pictures, but {family}: reads the samples of each "
            f"step; write '{inner}'"
        )
