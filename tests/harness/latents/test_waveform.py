"""The codecs of sound against the libraries' own networks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.config.spec import DataSpec
from harness.data.log_mel import HOP, RATE, mel_bytes
from harness.data.open import open_dataset
from harness.data.waveforms import as_mels, wave_length, waves
from harness.errors import UserError
from harness.latents.audio_codecs import Dac, Oobleck
from harness.latents.codec import open_codec
from tests.harness.latents.vae import save_dac, save_oobleck

CPU = torch.device("cpu")


def test_oobleck_is_that_of_diffusers(tmp_path: Path) -> None:
    """It hears one channel as two alike; what it says is the mean of both."""
    from diffusers import AutoencoderOobleck

    folder = save_oobleck(tmp_path / "o")
    codec, theirs = open_codec("oobleck", str(folder), CPU), AutoencoderOobleck.from_pretrained(folder).eval()
    x = torch.rand(2, 1, 960) * 2 - 1
    with torch.no_grad():
        posterior = theirs.encode(x.repeat(1, 2, 1)).latent_dist
        drawn = posterior.sample(torch.Generator().manual_seed(0))
        heard = theirs.decode(drawn).sample
    mean, std = codec.encode(x)
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mean + std * noise, drawn)
    assert std.min() > 0 and codec.shape((1, 960)) == tuple(mean.shape[1:]) == (4, 3)
    assert codec.rate == theirs.sampling_rate == 16_000
    torch.testing.assert_close(
        codec.decode(codec.affine.normalised(drawn)), (heard[:, :1] + heard[:, 1:]) / 2
    )


def test_dac_is_that_of_transformers_and_has_no_posterior(tmp_path: Path) -> None:
    """Encoding and decoding in one is its own forward pass: the codes are in between."""
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
def test_the_last_frame_is_filled_up_with_silence(tmp_path: Path, family: str, samples: int) -> None:
    folder = {"oobleck": save_oobleck, "dac": save_dac}[family](tmp_path / "w")
    codec, x = open_codec(family, str(folder), CPU), torch.rand(1, 1, samples)
    hop = {"oobleck": 320, "dac": 40}[family]
    whole = torch.zeros(1, 1, hop * math.ceil(samples / hop))
    whole[..., :samples] = x
    mean = codec.encode(x).mean
    assert torch.equal(mean, codec.encode(whole).mean)
    assert codec.shape((1, samples)) == tuple(mean.shape[1:]) and mean.shape[2] == whole.shape[2] / hop


def test_what_it_cannot_take_is_refused(tmp_path: Path) -> None:
    codec = open_codec("oobleck", str(save_oobleck(tmp_path / "o")), CPU)
    with pytest.raises(
        UserError, match=r"one channel of 320 samples or more \(0.02 s\), the waves have 1 of 319"
    ):
        codec.shape((1, 319))
    with pytest.raises(UserError, match="the waves have 2 of 640"):
        codec.shape((2, 640))
    with pytest.raises(
        UserError, match=r"has no model.safetensors; expected a folder in transformers' layout"
    ):
        open_codec("dac", str(tmp_path / "o"), CPU)


def test_outlines_are_the_shapes_under_the_published_configurations() -> None:
    """Against the libraries' networks of that size, on the meta device."""
    from diffusers import AutoencoderOobleck
    from transformers import DacConfig, DacModel

    songbloom = {"downsampling_ratios": [2, 4, 4, 6, 10], "sampling_rate": 48_000}
    published = DacConfig(downsampling_ratios=(2, 4, 8, 8), sampling_rate=44_100)
    with torch.device("meta"):
        oobleck = AutoencoderOobleck(**songbloom)
        mean = oobleck.encode(torch.empty(1, 2, 19_200)).latent_dist.mean
        heard = DacModel(published).encoder(torch.empty(1, 1, 5_120))
    assert Oobleck.outline((1, 19_200)) == Oobleck.outline((1, 17_281)) == tuple(mean.shape[1:]) == (64, 10)
    assert Dac.outline((1, 5_120)) == tuple(heard.shape[1:]) == (1024, 10)
    assert (Oobleck.rate, Dac.rate) == (oobleck.sampling_rate, published.sampling_rate)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_waves_come_back_as_the_log_mel_of_their_sample(rate: int) -> None:
    """A codec without loss would be heard as the data set's own picture, but for the top band: the way to 8
    kHz and back begins to fade there. One byte is 0.31 dB."""
    tones, index = open_dataset(DataSpec(name="tones", frames=16)), np.array([0, 5, 11])
    heard = waves(tones, index, rate)
    assert heard.shape == (3, 1, wave_length(16, rate)) and heard.dtype == torch.float32
    mels = ((as_mels(heard, rate, 16) + 1) * 127.5).round()
    known = torch.from_numpy(np.stack([tones.sample(int(i)).x for i in index])).float()
    loud = known > 100  # 49 dB below a full-scale sine or louder
    away = torch.where(loud, mels - known, 0).abs()
    assert loud[:, :30].any() and away[:, :30].max() <= 1 and away.max() <= 10


def test_recordings_are_read_at_the_rate_of_the_codec_as_they_are_on_disk(tmp_path: Path) -> None:
    """Windows of a recording at its own rate are its own samples, end to end, and are heard as its log-mel
    pictures."""
    import soundfile

    rate, frames = 48_000, 16
    x = np.random.default_rng(0).normal(0, 0.1, 3 * frames * HOP * rate // RATE + 7).clip(-1, 1)
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "noise.wav", x, rate, subtype="FLOAT")
    sounds, index = open_dataset(DataSpec(name="sounds", root=str(tmp_path), frames=frames)), np.arange(3)
    heard = waves(sounds, index, rate)
    np.testing.assert_array_equal(heard.flatten().numpy(), x[:-7].astype(np.float32))
    known = np.stack([sounds.sample(int(i)).x for i in index]).astype(float)
    away = ((as_mels(heard, rate, frames) + 1) * 127.5).round().numpy() - known
    assert np.abs(away[:, :, 1:-1]).max() <= 1  # the first and last frame have other neighbours


def test_a_wave_that_ends_early_goes_on_in_silence() -> None:
    wave = np.sin(2 * np.pi * 440 / RATE * np.arange(1024))
    mels = ((as_mels(torch.from_numpy(wave)[None, None], RATE, 16) + 1) * 127.5).round().numpy()[0]
    np.testing.assert_array_equal(mels[:, :7], mel_bytes(wave)[:, :7])
    assert not mels[:, 9:].any()
