"""Latents: samples drawn from encoded moments, with the images that they were made of beside them.

x0 = scale * (mean + std * noise), the noise from the stream `posterior` at the global sample index, anew each time that a
sample is seen (REPA train.py, `sample_posterior`: 0.18215 * (mean + std * randn)). Encoders and metrics see the images.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness import registry
from harness.codecs.base import Codec, open_codec
from harness.data.base import open_dataset
from harness.data.dataset import Dataset, Sample
from harness.data.files import data_path
from harness.data.shards import check, fingerprint, open_shards, read_index, read_manifest
from harness.errors import UserError
from harness.spec import DataSpec

EXPECTED = "a folder that flowrace data encode has made"


class Latents:
    """The moments stay in files and are mapped into memory; float16 ones are float32 from here on."""

    modality = "image"

    def __init__(self, spec: DataSpec) -> None:
        folder = data_path(spec, EXPECTED)
        self.manifest = manifest = read_manifest(folder)
        check(folder, manifest)
        self.shape, self.classes = tuple(manifest["shape"]), manifest["classes"]
        self.fingerprint = fingerprint(manifest)
        self.scale = manifest["codec"]["scale"]
        self._spec, self._index, self._shards = spec, read_index(folder), open_shards(folder, manifest)
        self._rows = manifest["rows"]
        _check_declared(spec, manifest)

    @staticmethod
    def outline(spec: DataSpec) -> Any:
        """What a spec alone says, for a plan without data: `shape`, `classes`, and the images' own in `pictures`."""
        if spec.resolution is None or spec.classes is None:
            raise UserError(
                "data.root is empty: a plan without data needs data.resolution and data.classes of the images"
            )
        pixels = (spec.channels or 3, spec.resolution, spec.resolution)
        family = (spec.codec or "sd-vae").partition("@")[0]
        about = {"modality": "image", "classes": spec.classes}
        shape = registry.load("codec", family).outline(pixels)
        return SimpleNamespace(**about, shape=shape, pictures=SimpleNamespace(**about, shape=pixels))

    def __len__(self) -> int:
        return self.manifest["samples"]

    def sample(self, index: int) -> Sample:
        """float32 (c, h, w): the scaled mean."""
        return Sample(self._moments(index, 0)[0] * np.float32(self.scale), self.label(index))

    def label(self, index: int) -> int:
        return int(self._index.labels[index])

    def key(self, index: int) -> bytes:
        """As of the image: the split is that of the images."""
        return self._index.key(index)

    def draws(self, place: np.ndarray, flipped: Tensor | None, noise: Tensor) -> Tensor:
        """Latents float32 (B, c, h, w) at data set indices (B,), of mirrored images where `flipped`; noise (B, c, h, w)."""
        copies = np.zeros(len(place), dtype=int) if flipped is None else flipped.numpy().astype(int)
        moments = np.stack([self._moments(int(i), copy) for i, copy in zip(place, copies, strict=True)])
        mean, std = torch.from_numpy(moments).unbind(dim=1)
        return (mean if self._spec.posterior == "mean" else mean + std * noise) * self.scale

    @cached_property
    def pictures(self) -> Dataset:
        """The images; raises `UserError` where they are gone or no longer those that were encoded."""
        source = self.manifest["source"]
        fields = source | ({"root": self._spec.images} if self._spec.images else {})
        try:
            return open_dataset(DataSpec(**fields))
        except UserError as error:
            raise UserError(
                f"the images that {self._spec.root} was encoded from: {error}. Say where they lie now in data.images"
            ) from error

    def codec(self, device: torch.device) -> Codec:
        """What decodes: `data.codec`, else the codec that encoded."""
        known, spec = self.manifest["codec"], self._spec
        name = spec.codec or f"{known['name']}@{known['sha256'][:8]}"
        return _codec(name, spec.codec_weights or known["weights"], str(device))

    def _moments(self, index: int, copy: int) -> np.ndarray:
        shard, row = divmod(index, self._rows)
        return np.asarray(self._shards[shard][row, copy], dtype=np.float32)


@lru_cache(maxsize=2)
def _codec(name: str, weights: str, device: str) -> Codec:
    return open_codec(name, weights, torch.device(device))


def _check_declared(spec: DataSpec, manifest: dict[str, Any]) -> None:
    declared = (
        ("classes", spec.classes, manifest["classes"]),
        ("resolution", spec.resolution, manifest["pixels"][1]),
    )
    for name, asked, there in declared:
        if asked not in (None, there):
            raise UserError(
                f"data.{name} = {asked}, but {Path(spec.root)} was encoded from images with {there}; "
                f"set data.{name}={there}"
            )
    if spec.flip and manifest["copies"] == 1:
        raise UserError(
            f"data.flip = true, but {spec.root} holds no moments of mirrored images; encode it with --flip"
        )
