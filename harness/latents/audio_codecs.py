"""Audio codecs: autoencoders of waveforms from diffusers and transformers, loaded from a local folder.

Waveforms are (B, 1, n) at the sampling rate of the codec. A codec of several channels receives the same
signal in each, and its outputs are averaged. Waveforms are padded with silence to complete latent frames.

The audio models of Self-Flow use latents of SongBloom's autoencoder. It is Stable Audio's Oobleck at 48 kHz,
stereo, with one frame of 64 channels every 1,920 samples. Convert its checkpoint to diffusers' layout first.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import UserError
from harness.latents.codec import Moments
from harness.latents.pretrained import Autoencoder, Pretrained


class _AudioCodec(Autoencoder):
    """Base class of the audio codecs."""

    modalities = ("audio",)
    channels: int
    hop: int
    """Audio samples per latent frame."""

    def __init__(self, weights: str, device: torch.device) -> None:
        super().__init__(weights, device)
        config = self._network.config
        self.rate, self.hop = config.sampling_rate, math.prod(config.downsampling_ratios)
        self._frame_seconds = self.hop / config.sampling_rate

    @classmethod
    def outline(cls, of: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the latents under the published weights."""
        return cls.channels, -(-of[1] // cls.hop)

    def shape(self, of: tuple[int, ...]) -> tuple[int, ...]:
        if of[0] != 1 or of[1] < self.hop:
            raise UserError(
                f"codec '{self.folder.codec}' needs one channel of at least {self.hop} samples "
                f"({self._frame_seconds:.3g} s), but the waveforms have {of[0]} of {of[1]}; set data.frames"
            )
        return self.channels, -(-of[1] // self.hop)

    def _padded(self, waves: Tensor) -> Tensor:
        """Pad waveforms with silence to complete latent frames."""
        return F.pad(waves, (0, -waves.shape[-1] % self.hop))


class Oobleck(_AudioCodec):
    """For sound: the waveform autoencoder of Stable Audio and SongBloom, diffusers' AutoencoderOobleck from a
    local folder."""

    folder = Pretrained(
        "oobleck", "diffusers", "AutoencoderOobleck", "stabilityai/stable-audio-open-1.0 in vae/"
    )
    rate, channels, hop = 48_000, 64, 1_920
    """Values of SongBloom's weights; Stable Audio's have 44.1 kHz and 2,048 samples."""

    def __init__(self, weights: str, device: torch.device) -> None:
        super().__init__(weights, device)
        config = self._network.config
        self.channels, self._audio_channels = config.decoder_input_channels, config.audio_channels

    def encode(self, samples: Tensor) -> Moments:
        return super().encode(self._padded(samples).expand(-1, self._audio_channels, -1))

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents).mean(1, keepdim=True)


class Dac(_AudioCodec):
    """For sound: Descript's waveform codec, transformers' DacModel from a local folder, without a posterior.

    Latents are the encoder's output before quantisation. Decoding quantises first, as the model itself does,
    so its decoder only receives codes that it was trained on.
    """

    folder = Pretrained("dac", "transformers", "DacModel", "descript/dac_44khz")
    rate, channels, hop = 44_100, 1_024, 512

    def __init__(self, weights: str, device: torch.device) -> None:
        super().__init__(weights, device)
        self.channels = self._network.config.hidden_size

    @torch.no_grad()
    def encode(self, samples: Tensor) -> Moments:
        mean = self._network.encoder(self._padded(samples))
        return Moments(mean, torch.zeros_like(mean))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        quantised = self._network.quantizer(self.affine.restored(latents.float()))[0]
        return self._network.decoder(quantised)
