"""Pretrained autoencoders of Hugging Face libraries, loaded from a local folder, frozen and in float32.

Nothing is downloaded and nothing is unpickled. Loading fails if any weight is missing.
"""

from __future__ import annotations

import hashlib
import importlib
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
from harness.files.parse import parse_json
from harness.latents.codec import Affine, Moments
from metrics.files.hashing import file_sha256

CONFIG = "config.json"


@dataclass(frozen=True)
class Pretrained:
    """The contents of a codec's folder."""

    codec: str
    package: str
    """Library of the network, diffusers or transformers."""
    network: str
    """Class of the network in the library."""
    example: str
    """A repository on the Hugging Face hub that has such a folder."""

    @property
    def weights(self) -> str:
        return {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}[
            self.package
        ]

    def check(self, folder: Path) -> None:
        """Raise `UserError` if a file is missing."""
        for name in (CONFIG, self.weights):
            if not (folder / name).is_file():
                raise UserError(
                    f"codec '{self.codec}': {folder} has no {name}; expected a folder in {self.package}' "
                    "layout with "
                    f"{CONFIG} and {self.weights}, for example from {self.example}; write {self.codec}:FOLDER"
                )

    def address(self, folder: Path) -> str:
        """Return the sha256 over configuration and weights. Raises `UserError` if a file is missing."""
        self.check(folder)
        total = hashlib.sha256()
        for name in (CONFIG, self.weights):
            total.update(file_sha256(folder / name).encode())
        return total.hexdigest()

    # Any: a class of an optional library.
    def load(self, folder: Path, device: torch.device) -> Any:
        """Return the network, frozen and in float32.

        Raises `UserError` for the folder of another network, and if a weight is missing.
        """
        try:
            cls = getattr(importlib.import_module(self.package), self.network)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"codec '{self.codec}' needs {self.package} with {self.network}: pip install "
                "'flowrace[latents]'"
            ) from error
        try:
            network, missing = self._loaded(cls, folder)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            raise self._incomplete(folder, str(error) or type(error).__name__) from error
        if missing:
            raise self._incomplete(folder, f"missing weights: {len(missing)}, first {missing[0]}")
        return network.float().to(device).requires_grad_(False).eval()

    def _loaded(self, cls: Any, folder: Path) -> tuple[Any, list[str]]:
        """Return the network, and the names of weights that are missing or have the wrong shape."""
        config = parse_json((folder / CONFIG).read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"its {CONFIG} is not a JSON object")
        declared = config.get("_class_name") or next(iter(config.get("architectures") or ()), self.network)
        if declared != self.network:
            raise ValueError(f"its {CONFIG} is that of {declared}")
        extra = {"low_cpu_mem_usage": False} if self.package == "diffusers" else {}
        with _quiet(self.package):
            network, info = cls.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **extra
            )
        return network, sorted({*info["missing_keys"], *(row[0] for row in info["mismatched_keys"])})

    def _incomplete(self, folder: Path, reason: str) -> UserError:
        return UserError(
            f"codec '{self.codec}': {folder} does not hold a complete {self.network}: "
            f"{reason.splitlines()[0]}"
        )


class Autoencoder:
    """A codec whose network, weights and normalisation come from a folder."""

    folder: Pretrained
    modalities: tuple[str, ...]
    rate: int | None = None

    def __init__(self, weights: str, device: torch.device) -> None:
        self.sha256 = self.address(Path(weights))
        self._network = self.folder.load(Path(weights), device)
        self.affine = published_affine(self._network.config)

    @classmethod
    def address(cls, path: Path) -> str:
        """Return the sha256 over configuration and weights. Raises `UserError` if a file is missing."""
        return cls.folder.address(path)

    @classmethod
    def check_weights(cls, path: Path) -> None:
        """Raise `UserError` if a file of the folder is missing."""
        cls.folder.check(path)

    @torch.no_grad()
    def encode(self, samples: Tensor) -> Moments:
        posterior = self._network.encode(samples).latent_dist
        return Moments(posterior.mean, posterior.std)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self._network.decode(self.affine.restored(latents.float())).sample

    def _check_image(self, channels: int, factor: int, shape: tuple[int, ...]) -> None:
        """Raise `UserError` for images or videos (C, ..., H, W) with another number of channels, or with
        sides that are no multiples of a factor."""
        height, width = shape[-2:]
        if shape[0] != channels:
            raise UserError(
                f"codec '{self.folder.codec}' needs {channels} channels, but the samples have {shape[0]}; "
                f"set data.channels={channels}"
            )
        if height % factor or width % factor:
            raise UserError(
                f"codec '{self.folder.codec}' needs sides that are multiples of {factor}, but the samples "
                "are "
                f"{width}x{height} pixels; set data.resolution"
            )


@contextmanager
def _quiet(package: str) -> Iterator[None]:
    """Suppress the library's progress bars, and its warnings about its own deprecated calls."""
    log = importlib.import_module(f"{package}.utils.logging")
    enabled = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if enabled:
            log.enable_progress_bar()


# Any: a configuration of an optional library.
def published_affine(config: Any) -> Affine:
    """Return the normalisation of a configuration, as in diffusers' pipelines.

    It is (z - latents_mean) * scaling_factor / latents_std for each channel, or (z - shift_factor) *
    scaling_factor for all.
    """
    factor = getattr(config, "scaling_factor", None) or 1.0
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return Affine((float(getattr(config, "shift_factor", None) or 0.0),), (float(factor),))
    return Affine(tuple(map(float, mean)), tuple(factor / float(value) for value in std))
