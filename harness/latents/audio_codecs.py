"""Sound: autoencoders of waves through diffusers and transformers, from a local folder.

Waves are (B, 1, n) at the codec's rate: a codec of several channels hears the same in each, and what it says
is averaged. Its last latent frame is filled up with silence.

Self-Flow's audio models learn latents of SongBloom's autoencoder: Stable Audio's Oobleck at 48 kHz, stereo,
one frame of 64 numbers each 1,920 samples. Convert its checkpoint to diffusers' layout first.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import UserError
from harness.latents.codec import Moments
from harness.latents.pretrained import Autoencoder, Pretrained


class _OfWaves(Autoencoder):
    """Base of the codecs of sound."""

    modalities = ("audio",)
    channels: int
    hop: int
    """Samples in a latent frame."""

    def __init__(self, weights: str, device: torch.device) -> None:
        super().__init__(weights, device)
        config = self._network.config
        self.rate, self.hop = config.sampling_rate, math.prod(config.downsampling_ratios)
        self._frame_seconds = self.hop / config.sampling_rate

    @classmethod
    def outline(cls, of: tuple[int, ...]) -> tuple[int, ...]:
        """Return the latents' shape under the published weights."""
        return cls.channels, -(-of[1] // cls.hop)

    def shape(self, of: tuple[int, ...]) -> tuple[int, ...]:
        if of[0] != 1 or of[1] < self.hop:
            raise UserError(
                f"codec '{self.folder.codec}' takes one channel of {self.hop} samples or more "
                f"({self._frame_seconds:.3g} s), the waves have {of[0]} of {of[1]}; set data.frames"
            )
        return self.channels, -(-of[1] // self.hop)

    def _filled(self, waves: Tensor) -> Tensor:
        return F.pad(waves, (0, -waves.shape[-1] % self.hop))


class Oobleck(_OfWaves):
    """For sound: Stable Audio's and SongBloom's autoencoder of waves, diffusers' AutoencoderOobleck from a
    local folder."""

    folder = Pretrained(
        "oobleck", "diffusers", "AutoencoderOobleck", "stabilityai/stable-audio-open-1.0 in vae/"
    )
    rate, channels, hop = 48_000, 64, 1_920
    """Of SongBloom's weights; Stable Audio's are of 44.1 kHz and 2,048 samples."""

    def __init__(self, weights: str, device: torch.device) -> None:
        super().__init__(weights, device)
        config = self._network.config
        self.channels, self._heard = config.decoder_input_channels, config.audio_channels

    def encode(self, samples: Tensor) -> Moments:
        return super().encode(self._filled(samples).expand(-1, self._heard, -1))

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents).mean(1, keepdim=True)


class Dac(_OfWaves):
    """For sound: Descript's audio codec of waves, transformers' DacModel from a local folder; no posterior,
    so no noise.

    Latents are what its encoder says before it is rounded to codes; decoding rounds, then decodes, as the
    model itself does (codes outside what it was trained on never reach its decoder).
    """

    folder = Pretrained("dac", "transformers", "DacModel", "descript/dac_44khz")
    rate, channels, hop = 44_100, 1_024, 512

    def __init__(self, weights: str, device: torch.device) -> None:
        super().__init__(weights, device)
        self.channels = self._network.config.hidden_size

    @torch.no_grad()
    def encode(self, samples: Tensor) -> Moments:
        mean = self._network.encoder(self._filled(samples))
        return Moments(mean, torch.zeros_like(mean))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        rounded = self._network.quantizer(self.affine.restored(latents.float()))[0]
        return self._network.decoder(rounded)
