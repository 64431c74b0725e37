"""Weights of the Hugging Face libraries from a local folder: found, hashed, loaded whole, frozen, in float32.

Nothing is downloaded and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from harness.errors import UserError
from harness.latents.codec import Affine, Moments
from metrics.files.hashing import file_sha256

CONFIG = "config.json"


@dataclass(frozen=True)
class Pretrained:
    """What a codec's folder holds."""

    codec: str
    package: str
    """diffusers or transformers."""
    network: str
    """Its class there."""
    example: str
    """A repository of the hub that has such a folder."""

    @property
    def weights(self) -> str:
        return {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}[
            self.package
        ]

    def address(self, folder: Path) -> str:
        """sha256 over configuration and weights; raises `UserError` where a file is missing."""
        total = hashlib.sha256()
        for name in (CONFIG, self.weights):
            if not (folder / name).is_file():
                raise UserError(
                    f"codec '{self.codec}': {folder} has no {name}; expected a folder in {self.package}' layout with "
                    f"{CONFIG} and {self.weights}, as the hub has {self.example}; write it as {self.codec}:FOLDER"
                )
            total.update(file_sha256(folder / name).encode())
        return total.hexdigest()

    def load(self, folder: Path, device: torch.device) -> Any:
        """The network, frozen, in float32; raises `UserError` for a folder of another one, and where a weight
        is missing."""
        try:
            cls = getattr(importlib.import_module(self.package), self.network)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"codec '{self.codec}' needs {self.package} with {self.network}: pip install 'flowrace[latents]'"
            ) from error
        try:
            found, missing = self._loaded(cls, folder)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            raise self._not_whole(folder, str(error) or type(error).__name__) from error
        if missing:
            raise self._not_whole(folder, f"{len(missing)} weights are missing, first {missing[0]}")
        return found.float().to(device).requires_grad_(False).eval()

    def _loaded(self, cls: Any, folder: Path) -> tuple[Any, list[str]]:
        """The network, and the names of weights that the folder does not have in the right shape."""
        config = json.loads((folder / CONFIG).read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"its {CONFIG} is not a table")
        named = config.get("_class_name") or next(iter(config.get("architectures") or ()), self.network)
        if named != self.network:
            raise ValueError(f"its {CONFIG} names a {named}")
        extra = {"low_cpu_mem_usage": False} if self.package == "diffusers" else {}
        with _quiet(self.package):
            found, info = cls.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **extra
            )
        return found, sorted({*info["missing_keys"], *(row[0] for row in info["mismatched_keys"])})

    def _not_whole(self, folder: Path, reason: str) -> UserError:
        return UserError(
            f"codec '{self.codec}': {folder} does not hold a whole {self.network}: {reason.splitlines()[0]}"
        )


class Autoencoder:
    """A codec whose network comes from a folder; its weights and normalisation are those of that folder."""

    folder: Pretrained
    modalities: tuple[str, ...]
    rate: int | None = None

    def __init__(self, weights: str, device: torch.device) -> None:
        self.sha256 = self.address(Path(weights))
        self._network = self.folder.load(Path(weights), device)
        self.affine = published_affine(self._network.config)

    @classmethod
    def address(cls, path: Path) -> str:
        """sha256 over configuration and weights; raises `UserError` where a file is missing."""
        return cls.folder.address(path)

    @torch.no_grad()
    def encode(self, samples: Tensor) -> Moments:
        found = self._network.encode(samples).latent_dist
        return Moments(found.mean, found.std)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self._network.decode(self.affine.restored(latents.float())).sample

    def _check_picture(self, channels: int, factor: int, shape: tuple[int, ...]) -> None:
        """Raise `UserError` for pictures (C, ..., H, W) of other channels, or with sides that the factor does
        not divide."""
        height, width = shape[-2:]
        if shape[0] != channels:
            raise UserError(
                f"codec '{self.folder.codec}' reads {channels} channels, the samples have {shape[0]}; "
                f"set data.channels={channels}"
            )
        if height % factor or width % factor:
            raise UserError(
                f"codec '{self.folder.codec}' takes sides that {factor} divides, the samples are {width}x{height} "
                "pixels; set data.resolution"
            )


@contextmanager
def _quiet(package: str) -> Iterator[None]:
    """Without the library's bars, and what it warns of in its own calls."""
    log = importlib.import_module(f"{package}.utils.logging")
    shown = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            log.enable_progress_bar()


def published_affine(config: Any) -> Affine:
    """The normalisation that a configuration publishes, as diffusers' pipelines apply it: (z - latents_mean)
    * scaling_factor / latents_std for each channel, `shift_factor` in the mean's place where there is one."""
    factor = getattr(config, "scaling_factor", None) or 1.0
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return Affine((float(getattr(config, "shift_factor", None) or 0.0),), (float(factor),))
    return Affine(tuple(map(float, mean)), tuple(factor / float(value) for value in std))
