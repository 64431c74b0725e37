"""A frozen encoder's features, computed once for all of a data set and then read from a memory-mapped file.

The file is float32 (N, T, dim), N the size of the data set, row i the tokens of sample i: 4 N T dim bytes. It
is addressed by what its numbers depend on: the inner encoder and the hash of its weights, the data's
fingerprint and shape, the grid, device and autocast type, and the features themselves that the encoder
computes for the first samples at each start. Another transform, kernel or thread count that changes a bit of
those is another file.
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
from harness.data.dataset import Dataset
from harness.data.open import images
from harness.encoders.base import (
    Architecture,
    Choice,
    Encoder,
    EncoderChoice,
    Viewer,
    open_encoder,
    parse_name,
)
from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.files.files import locked, replacing, write_atomic
from harness.flow.batch import View
from metrics.files.hashing import sha256_of

BATCH = 64
"""Images in one pass while the file is made."""
PROBE = 16
"""Samples whose features are computed anew at each opening."""


class CachedEncoder(Viewer):
    """Any other encoder with its features kept on disk, for example
    cached:timm:vit_base_patch14_dinov2.lvd142m.

    A training step costs no encoder FLOPs (`flops` is 0). The one-off cost is the inner encoder's `flops`
    times the number of samples, paid by the first run that needs the file, in its first step, where it is
    booked as warm-up; a comparison of total cost has to add it (`one_off_flops`). Every image must look the
    same each time it is seen: no flip.

    Rows are made in passes of `BATCH` images. They are the bits of an online pass wherever a kernel's
    rounding does not depend on the number of images, as on the CPU; where it does, they are the bits of a
    pass of that size.
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
        inner = Choice(parse_name(choice.name)[1], choice.weights, choice.sha256, choice.download)
        _refuse_nesting(inner.name)
        self.inner: Encoder = open_encoder(inner, dataset, grid=grid, held_out=held_out, device=device)
        self.name, self.grid, self.dim, self.heads = choice.name, grid, self.inner.dim, 0
        self.params, self.sha256, self.accuracy = self.inner.params, self.inner.sha256, self.inner.accuracy
        self.one_off_flops = self.inner.flops * len(dataset)
        self._dataset, self._device = dataset, device
        self._tables: dict[str, np.ndarray] = {}

    @staticmethod
    def architecture(model: str, shape: tuple[int, ...], classes: int, grid: tuple[int, int]) -> Architecture:
        """The inner encoder's width, at no cost per step."""
        _refuse_nesting(model)
        family, name = parse_name(model)
        inner = registry.load("encoder", family).architecture(name, shape, classes, grid)
        return Architecture(inner.dim, 0)

    def view(self, images: Tensor, *, summary: bool = False, attention: int = 0) -> View:
        """Of images that need not be in the data set: the inner encoder's own pass."""
        return self.inner.view(images, summary=summary, attention=attention)

    def view_at(
        self, index: np.ndarray, images: Tensor, *, summary: bool = False, attention: int = 0
    ) -> View:
        """Tokens, float32 (B, T, dim) on the images' device, of the samples at data set indices (B,): read,
        not computed.

        The first call makes or verifies the file, under the caller's autocast, so that its numbers are those
        of a pass here.
        """
        if summary or attention:
            raise UserError(
                f"encoder '{self.name}' keeps tokens alone, no summary and no attention; this method needs '{self.inner.name}'"
            )
        kind = autocast_type(self._device)
        if kind not in self._tables:
            self._tables[kind] = self._open(kind)
        return View(torch.from_numpy(self._tables[kind][index]).to(images.device))

    def _open(self, kind: str) -> np.ndarray:
        probe = _encode(self, np.arange(min(PROBE, len(self._dataset))))
        shape = (len(self._dataset), *probe.shape[1:])
        parts = [
            *(self.inner.name, self.sha256, self._dataset.fingerprint, self._dataset.shape, self.grid),
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
            raise UserError(f"the features in {file} do not stay as they were written; check the disk")
        return table


def check_cached(spec: RunSpec) -> None:
    """Raise `UserError` where a spec asks for kept features of images that change: data.flip mirrors half of
    them anew."""
    for encoder in spec.method.needs().encoders:
        if spec.data.flip and encoder.name.startswith("cached:"):
            raise UserError(
                f"method.encoder '{encoder.name}' keeps one set of features for each image, but data.flip = true shows half "
                f"of them mirrored; set data.flip=false, or compute them in each step with '{parse_name(encoder.name)[1]}'"
            )


def write(file: Path, encoder: CachedEncoder, shape: tuple[int, ...]) -> None:
    """Compute all rows, (N, T, dim), into a temporary file, then rename it; its sha256 is in `<name>.sha256`
    before that.

    Raises `UserError` if the disk refuses it, and removes what it wrote.
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
            f"cannot write the features {file}: {error.strerror}; free the disk, name another folder in FLOWRACE_CACHE, "
            f"or use '{encoder.inner.name}' without cached:"
        ) from error


def read(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the table, memory-mapped and verified by its checksum; None if it is absent or damaged."""
    try:
        if _sum_of(file).read_text() != sha256_of(file):
            return None
        table = np.load(file, mmap_mode="r", allow_pickle=False)
    # ValueError: a checksum that is not text, or a broken header.
    except (OSError, ValueError):
        return None
    return table if table.shape == shape and table.dtype == np.float32 else None


def autocast_type(device: torch.device) -> str:
    """The type that matrix products run in here: float32, or autocast's."""
    if not torch.is_autocast_enabled(device.type):
        return "float32"
    return str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")


def _encode(encoder: CachedEncoder, index: np.ndarray) -> np.ndarray:
    """The inner encoder's features of samples, scaled as training scales them."""
    pixels = torch.from_numpy(images(encoder._dataset, index)[0]).float().div_(127.5).sub_(1)
    return encoder.inner.features(pixels.to(encoder._device)).cpu().numpy().astype("<f4", copy=False)


def _sum_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


def _refuse_nesting(inner: str) -> None:
    if parse_name(inner)[0] == "cached":
        raise UserError(f"encoder 'cached:{inner}' is cached twice; once is enough: '{inner}'")
