"""The image autoencoder of Stable Diffusion (sd-vae-ft-ema, -mse): diffusers' AutoencoderKL from a local
folder."""

from __future__ import annotations

import torch

from harness.latents.pretrained import Autoencoder, Pretrained

CHANNELS, FACTOR = 4, 8
"""Latent channels and downsampling factor of the published weights: 32x32x4 for 256x256 pixels."""


class SdVae(Autoencoder):
    """For images: Stable Diffusion's autoencoder, diffusers' AutoencoderKL from a local folder (sides / 8, 4
    channels).

    The scale is the configuration's `scaling_factor` (0.18215 for the published weights).
    """

    folder = Pretrained("sd-vae", "diffusers", "AutoencoderKL", "stabilityai/sd-vae-ft-ema")
    modalities = ("image",)

    def __init__(self, weights: str, device: torch.device) -> None:
        super().__init__(weights, device)
        config = self._network.config
        self._pixels, self._channels = config.in_channels, config.latent_channels
        self._factor = 2 ** (len(config.block_out_channels) - 1)

    @staticmethod
    def outline(of: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the latents under the published weights."""
        return CHANNELS, of[1] // FACTOR, of[2] // FACTOR

    def shape(self, of: tuple[int, ...]) -> tuple[int, ...]:
        self._check_image(self._pixels, self._factor, of)
        return self._channels, of[1] // self._factor, of[2] // self._factor
