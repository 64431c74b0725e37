"""Audio codecs against the libraries' networks, and conversion between waveforms and spectrograms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.config.data_spec import DataSpec
from harness.data.log_mel import HOP, RATE, mel_bytes
from harness.data.open import open_dataset
from harness.data.waveforms import log_mels, read_waves, wave_length
from harness.errors import UserError
from harness.latents.audio_codecs import Dac, Oobleck
from harness.latents.codec import open_codec
from tests.harness.latents.vae import save_dac, save_oobleck

CPU = torch.device("cpu")


def test_oobleck_agrees_with_diffusers(tmp_path: Path) -> None:
    """A mono signal is copied to both channels, and the output is their mean."""
    from diffusers import AutoencoderOobleck

    folder = save_oobleck(tmp_path / "o")
    codec, theirs = open_codec("oobleck", str(folder), CPU), AutoencoderOobleck.from_pretrained(folder).eval()
    x = torch.rand(2, 1, 960) * 2 - 1
    with torch.no_grad():
        posterior = theirs.encode(x.repeat(1, 2, 1)).latent_dist
        drawn = posterior.sample(torch.Generator().manual_seed(0))
        decoded = theirs.decode(drawn).sample
    mean, std = codec.encode(x)
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mean + std * noise, drawn)
    assert std.min() > 0 and codec.shape((1, 960)) == tuple(mean.shape[1:]) == (4, 3)
    assert codec.rate == theirs.sampling_rate == 16_000
    torch.testing.assert_close(
        codec.decode(codec.affine.normalised(drawn)), (decoded[:, :1] + decoded[:, 1:]) / 2
    )


def test_dac_agrees_with_transformers_and_has_no_posterior(tmp_path: Path) -> None:
    """Encoding and decoding equals the model's forward pass, which quantises in between."""
    from transformers import DacModel

    folder = save_dac(tmp_path / "d")
    codec, theirs = open_codec("dac", str(folder), CPU), DacModel.from_pretrained(folder).eval()
    x = torch.rand(2, 1, 400) * 2 - 1
    mean, std = codec.encode(x)
    assert not std.any() and codec.shape((1, 400)) == tuple(mean.shape[1:]) == (32, 10)
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(codec.affine.normalised(mean))[:, 0], theirs(x).audio_values)


@pytest.mark.parametrize("family", ["oobleck", "dac"])
@pytest.mark.parametrize("samples", [320, 321, 639, 640, 8192])
def test_last_latent_frame_is_padded_with_silence(tmp_path: Path, family: str, samples: int) -> None:
    folder = {"oobleck": save_oobleck, "dac": save_dac}[family](tmp_path / "w")
    codec, x = open_codec(family, str(folder), CPU), torch.rand(1, 1, samples)
    hop = {"oobleck": 320, "dac": 40}[family]
    padded = torch.zeros(1, 1, hop * math.ceil(samples / hop))
    padded[..., :samples] = x
    mean = codec.encode(x).mean
    assert torch.equal(mean, codec.encode(padded).mean)
    assert codec.shape((1, samples)) == tuple(mean.shape[1:]) and mean.shape[2] == padded.shape[2] / hop


def test_audio_codecs_raise_for_unsuited_waveforms_and_folders(tmp_path: Path) -> None:
    codec = open_codec("oobleck", str(save_oobleck(tmp_path / "o")), CPU)
    with pytest.raises(
        UserError, match=r"one channel of at least 320 samples \(0.02 s\), but the waveforms have 1 of 319"
    ):
        codec.shape((1, 319))
    with pytest.raises(UserError, match="the waveforms have 2 of 640"):
        codec.shape((2, 640))
    with pytest.raises(
        UserError, match=r"has no model.safetensors; expected a folder in transformers' layout"
    ):
        open_codec("dac", str(tmp_path / "o"), CPU)


def test_outlines_are_the_shapes_under_the_published_configurations() -> None:
    """Compared with the libraries' networks of that size on the meta device."""
    from diffusers import AutoencoderOobleck
    from transformers import DacConfig, DacModel

    songbloom = {"downsampling_ratios": [2, 4, 4, 6, 10], "sampling_rate": 48_000}
    published = DacConfig(downsampling_ratios=(2, 4, 8, 8), sampling_rate=44_100)
    with torch.device("meta"):
        oobleck = AutoencoderOobleck(**songbloom)
        mean = oobleck.encode(torch.empty(1, 2, 19_200)).latent_dist.mean
        latents = DacModel(published).encoder(torch.empty(1, 1, 5_120))
    assert Oobleck.outline((1, 19_200)) == Oobleck.outline((1, 17_281)) == tuple(mean.shape[1:]) == (64, 10)
    assert Dac.outline((1, 5_120)) == tuple(latents.shape[1:]) == (1024, 10)
    assert (Oobleck.rate, Dac.rate) == (oobleck.sampling_rate, published.sampling_rate)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_log_mels_of_waveforms_are_the_spectrograms_of_their_samples(rate: int) -> None:
    """Only the top bands differ, where the resampling filter attenuates. One byte is 0.31 dB."""
    tones, index = open_dataset(DataSpec(name="tones", frames=16)), np.array([0, 5, 11])
    waves = read_waves(tones, index, rate)
    assert waves.shape == (3, 1, wave_length(16, rate)) and waves.dtype == torch.float32
    mels = ((log_mels(waves, rate, 16) + 1) * 127.5).round()
    known = torch.from_numpy(np.stack([tones.sample(int(i)).x for i in index])).float()
    # Within 49 dB of a full-scale sine.
    loud = known > 100
    difference = torch.where(loud, mels - known, 0).abs()
    assert loud[:, :30].any() and difference[:, :30].max() <= 1 and difference.max() <= 10


def test_recordings_at_the_rate_of_the_codec_are_not_resampled(tmp_path: Path) -> None:
    """Windows are the recorded samples end to end, and their spectrograms are those of the data set."""
    import soundfile

    rate, frames = 48_000, 16
    x = np.random.default_rng(0).normal(0, 0.1, 3 * frames * HOP * rate // RATE + 7).clip(-1, 1)
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "noise.wav", x, rate, subtype="FLOAT")
    sounds, index = open_dataset(DataSpec(name="sounds", root=str(tmp_path), frames=frames)), np.arange(3)
    waves = read_waves(sounds, index, rate)
    np.testing.assert_array_equal(waves.flatten().numpy(), x[:-7].astype(np.float32))
    known = np.stack([sounds.sample(int(i)).x for i in index]).astype(float)
    difference = ((log_mels(waves, rate, frames) + 1) * 127.5).round().numpy() - known
    # The first and last frame have other neighbours.
    assert np.abs(difference[:, :, 1:-1]).max() <= 1


def test_log_mels_pads_short_waveforms_with_silence() -> None:
    wave = np.sin(2 * np.pi * 440 / RATE * np.arange(1024))
    mels = ((log_mels(torch.from_numpy(wave)[None, None], RATE, 16) + 1) * 127.5).round().numpy()[0]
    np.testing.assert_array_equal(mels[:, :7], mel_bytes(wave)[:, :7])
    assert not mels[:, 9:].any()
