"""Videos: Wan's causal autoencoder (2.1, 2.2) through diffusers' AutoencoderKLWan, from a local folder.

Self-Flow's video models learn latents of Wan 2.2. The first frame has a latent frame of its own, every four
after it share one: F frames, 1 more than a multiple of 4, give 1 + (F - 1) / 4.
"""

from __future__ import annotations

import torch

from harness.errors import UserError
from harness.latents.pretrained import Autoencoder, Pretrained

CHANNELS, FACTOR = 48, 16
"""Of Wan 2.2; Wan 2.1 has 16 channels and a factor of 8."""
FRAMES = 4
"""That share a latent frame, behind the first: diffusers encodes in steps of four."""


class WanVae(Autoencoder):
    """For videos: Wan's causal autoencoder, diffusers' AutoencoderKLWan from a local folder (2.2: 4k + 1
    frames, sides by 16).

    Latents are normalised by the configuration's `latents_mean` and `latents_std`, channel by channel.
    """

    folder = Pretrained("wan-vae", "diffusers", "AutoencoderKLWan", "Wan-AI/Wan2.2-TI2V-5B-Diffusers in vae/")
    modalities = ("video",)

    def __init__(self, weights: str, device: torch.device) -> None:
        super().__init__(weights, device)
        config = self._network.config
        if sum(config.temperal_downsample) != 2:
            raise UserError(
                f"codec 'wan-vae': {weights} joins {2 ** sum(config.temperal_downsample)} frames in one; only "
                f"autoencoders that join {FRAMES} are read"
            )
        patch = config.patch_size or 1
        self._pixels, self._channels = config.in_channels // patch**2, config.z_dim
        self._factor = patch * 2 ** len(config.temperal_downsample)

    @staticmethod
    def outline(of: tuple[int, ...]) -> tuple[int, ...]:
        """The latents' shape under the published weights."""
        return CHANNELS, _latent_frames(of[1]), of[2] // FACTOR, of[3] // FACTOR

    def shape(self, of: tuple[int, ...]) -> tuple[int, ...]:
        self._check_picture(self._pixels, self._factor, of)
        return self._channels, _latent_frames(of[1]), of[2] // self._factor, of[3] // self._factor


def _latent_frames(frames: int) -> int:
    if frames % FRAMES != 1:
        below = frames - (frames - 1) % FRAMES
        near = [str(count) for count in (below, below + FRAMES) if count > 1]
        raise UserError(
            f"codec 'wan-vae' takes 1 frame more than a multiple of {FRAMES}, the samples have {frames}; "
            f"set data.frames={' or '.join(near)}"
        )
    return 1 + frames // FRAMES
