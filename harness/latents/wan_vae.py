"""The causal video autoencoder of Wan (2.1, 2.2): diffusers' AutoencoderKLWan from a local folder.

The video models of Self-Flow use latents of Wan 2.2. The first frame has its own latent frame, and each four
frames after it share one. F = 4k + 1 frames become k + 1 latent frames.
"""

from __future__ import annotations

import torch

from harness.errors import UserError
from harness.latents.pretrained import Autoencoder, Pretrained

CHANNELS, FACTOR = 48, 16
"""Latent channels and downsampling factor of Wan 2.2; Wan 2.1 has 16 and 8."""
FRAMES = 4
"""Frames that share a latent frame after the first one; diffusers encodes in chunks of four."""


class WanVae(Autoencoder):
    """For videos: Wan's causal autoencoder, diffusers' AutoencoderKLWan from a local folder (2.2: 4k + 1
    frames, sides / 16).

    Latents are normalised by the configuration's `latents_mean` and `latents_std` for each channel.
    """

    folder = Pretrained("wan-vae", "diffusers", "AutoencoderKLWan", "Wan-AI/Wan2.2-TI2V-5B-Diffusers in vae/")
    modalities = ("video",)

    def __init__(self, weights: str, device: torch.device) -> None:
        super().__init__(weights, device)
        config = self._network.config
        if sum(config.temperal_downsample) != 2:
            raise UserError(
                f"codec 'wan-vae': {weights} compresses {2 ** sum(config.temperal_downsample)} frames into "
                "one, "
                f"expected an autoencoder that compresses {FRAMES}"
            )
        patch = config.patch_size or 1
        self._pixels, self._channels = config.in_channels // patch**2, config.z_dim
        self._factor = patch * 2 ** len(config.temperal_downsample)

    @staticmethod
    def outline(of: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the latents under the published weights."""
        return CHANNELS, _latent_frames(of[1]), of[2] // FACTOR, of[3] // FACTOR

    def shape(self, of: tuple[int, ...]) -> tuple[int, ...]:
        self._check_image(self._pixels, self._factor, of)
        return self._channels, _latent_frames(of[1]), of[2] // self._factor, of[3] // self._factor


def _latent_frames(frames: int) -> int:
    """Return the number of latent frames. Raises `UserError` unless frames = 4k + 1."""
    if frames % FRAMES != 1:
        below = frames - (frames - 1) % FRAMES
        nearest = [str(count) for count in (below, below + FRAMES) if count > 1]
        raise UserError(
            f"codec 'wan-vae' needs a multiple of {FRAMES} plus 1 frames, but the samples have {frames}; "
            f"set data.frames={' or '.join(nearest)}"
        )
    return 1 + frames // FRAMES
