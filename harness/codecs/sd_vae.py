"""Stable Diffusion's autoencoder (sd-vae-ft-ema, -mse) through diffusers' AutoencoderKL, from a local folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from harness.codecs.base import Moments
from harness.errors import UserError
from metrics.files import file_sha256

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
CHANNELS, FACTOR = 4, 8
"""Of the published weights: 32x32x4 for 256x256 pixels."""


class SdVae:
    """`weights` is a folder in diffusers' layout; nothing is downloaded. Runs in float32.

    The scale is the configuration's `scaling_factor` (0.18215 for the published weights).
    """

    def __init__(self, weights: str, device: torch.device) -> None:
        self.sha256 = self.address(Path(weights))
        self._network = _load(Path(weights)).to(device).requires_grad_(False).eval()
        config = self._network.config
        self.scale = float(config.scaling_factor)
        self._pixels, self._channels = config.in_channels, config.latent_channels
        self._factor = 2 ** (len(config.block_out_channels) - 1)

    @classmethod
    def address(cls, path: Path) -> str:
        """sha256 over configuration and weights; raises `UserError` where a file is missing."""
        total = hashlib.sha256()
        for name in (CONFIG, WEIGHTS):
            if not (path / name).is_file():
                raise UserError(
                    f"codec 'sd-vae': {path} has no {name}; expected a folder in diffusers' layout with {CONFIG} and "
                    f"{WEIGHTS}, as the hub has stabilityai/sd-vae-ft-ema; write it as sd-vae:FOLDER"
                )
            total.update(file_sha256(path / name).encode())
        return total.hexdigest()

    @staticmethod
    def outline(pixels: tuple[int, int, int]) -> tuple[int, int, int]:
        """The latents' shape under the published weights."""
        return CHANNELS, pixels[1] // FACTOR, pixels[2] // FACTOR

    def shape(self, pixels: tuple[int, int, int]) -> tuple[int, int, int]:
        channels, height, width = pixels
        if channels != self._pixels:
            raise UserError(
                f"codec 'sd-vae' reads {self._pixels} channels, the images have {channels}; "
                f"set data.channels={self._pixels}"
            )
        if height % self._factor or width % self._factor:
            raise UserError(
                f"codec 'sd-vae' takes sides that {self._factor} divides, the images are {width}x{height} pixels; "
                "set data.resolution"
            )
        return self._channels, height // self._factor, width // self._factor

    @torch.no_grad()
    def encode(self, images: Tensor) -> Moments:
        found = self._network.encode(images).latent_dist
        return Moments(found.mean, found.std)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self._network.decode(latents.float() / self.scale).sample


def _load(folder: Path) -> torch.nn.Module:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UserError("codec 'sd-vae' needs diffusers: pip install 'flowrace[latents]'") from error
    try:
        json.loads((folder / CONFIG).read_bytes())
        found = AutoencoderKL.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"codec 'sd-vae': {folder} does not hold an AutoencoderKL: {reason}") from error
    return found.float()
