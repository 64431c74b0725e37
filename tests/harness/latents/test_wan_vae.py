"""The video autoencoder against diffusers' network and pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from harness.errors import UserError
from harness.latents.codec import open_codec
from harness.latents.wan_vae import WanVae
from tests.harness.latents.vae import save_vae, save_wan

CPU = torch.device("cpu")
WAN_22 = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2,
    "temperal_downsample": [False, True, True], "in_channels": 12, "out_channels": 12, "patch_size": 2,
    "is_residual": True, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48, "scale_factor_spatial": 16,
}  # fmt: skip
"""The published configuration, except for the numbers of its normalisation."""


@pytest.mark.parametrize(("channels", "patch"), [(1, None), (3, 2)])
def test_wan_vae_agrees_with_diffusers(tmp_path: Path, channels: int, patch: int | None) -> None:
    from diffusers import AutoencoderKLWan

    folder = save_wan(tmp_path / "wan", channels, patch)
    codec, wan = open_codec("wan-vae", str(folder), CPU), AutoencoderKLWan.from_pretrained(folder).eval()
    x = torch.rand(2, channels, 9, 16, 24) * 2 - 1
    with torch.no_grad():
        posterior = wan.encode(x).latent_dist
        drawn = posterior.sample(torch.Generator().manual_seed(0))
        video = wan.decode(drawn).sample
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0))
    mean, std = codec.encode(x)
    torch.testing.assert_close(mean + std * noise, drawn)
    assert codec.shape(tuple(x.shape[1:])) == tuple(mean.shape[1:])
    found = codec.decode(codec.affine.normalised(drawn))
    assert found.shape == x.shape
    torch.testing.assert_close(found, video, rtol=1e-4, atol=1e-5)


def test_normalisation_agrees_with_the_pipeline_of_diffusers(tmp_path: Path) -> None:
    """The image-to-video pipeline normalises by the mean and deviation of each channel in the
    configuration."""
    from diffusers import AutoencoderKLWan, WanImageToVideoPipeline
    from diffusers.video_processor import VideoProcessor

    folder = save_wan(tmp_path / "wan", channels=3)
    wan = AutoencoderKLWan.from_pretrained(folder).eval()
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    pipeline = SimpleNamespace(
        vae=wan, vae_scale_factor_temporal=4, vae_scale_factor_spatial=4, video_processor=VideoProcessor(), 
        config=SimpleNamespace(expand_timesteps=True),
    )  # fmt: skip
    with torch.no_grad():
        _, condition, _ = WanImageToVideoPipeline.prepare_latents(
            pipeline, image, 1, 3, 8, 8, 5, torch.float32, CPU, torch.Generator().manual_seed(0)
        )
    codec = open_codec("wan-vae", str(folder), CPU)
    ours = codec.affine.normalised(codec.encode(image[:, :, None]).mean)
    torch.testing.assert_close(ours, condition)
    assert (condition - codec.encode(image[:, :, None]).mean).abs().max() > 0.05


@pytest.mark.parametrize("of", [(3, 1, 16, 16), (3, 17, 32, 48), (3, 45, 192, 192)])
def test_outline_is_the_shape_under_the_published_configuration(of: tuple[int, ...]) -> None:
    """Compared with diffusers' network of that size on the meta device, without computing anything."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        mean = AutoencoderKLWan(**WAN_22).eval().encode(torch.empty(1, *of)).latent_dist.mean
    assert WanVae.outline(of) == tuple(mean.shape[1:])


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ((1, 9, 8, 8), "needs 3 channels, but the samples have 1; set data.channels=3"),
        ((3, 8, 8, 8), "a multiple of 4 plus 1 frames, but the samples have 8; set data.frames=5 or 9"),
        ((3, 16, 8, 8), "the samples have 16; set data.frames=13 or 17"),
        ((3, 3, 8, 8), "the samples have 3; set data.frames=5$"),
        (
            (3, 9, 8, 10),
            "needs sides that are multiples of 4, but the samples are 10x8 pixels; set data.resolution",
        ),
    ],
)
def test_wan_vae_raises_for_unsuited_videos(
    tmp_path_factory: pytest.TempPathFactory, of: tuple[int, ...], message: str
) -> None:
    codec = open_codec("wan-vae", str(save_wan(tmp_path_factory.mktemp("wan"), channels=3)), CPU)
    with pytest.raises(UserError, match=message):
        codec.shape(of)


def test_wan_vae_raises_for_folders_of_other_networks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"AutoencoderKLWan: its config.json is that of AutoencoderKL$"):
        open_codec("wan-vae", str(save_vae(tmp_path / "image")), CPU)
    other = save_wan(tmp_path / "other", temperal_downsample=[False, True])
    with pytest.raises(
        UserError, match="compresses 2 frames into one, expected an autoencoder that compresses 4"
    ):
        open_codec("wan-vae", str(other), CPU)
    with pytest.raises(
        UserError, match=r"nowhere has no config.json; expected a folder in diffusers' layout"
    ):
        open_codec("wan-vae", "nowhere", CPU)


def test_wan_vae_raises_for_missing_weights(tmp_path: Path) -> None:
    """The library would initialise them randomly."""
    from safetensors.torch import load_file, save_file

    folder = save_wan(tmp_path / "wan")
    file = folder / "diffusion_pytorch_model.safetensors"
    weights: dict[str, Tensor] = load_file(file)
    weights.pop("quant_conv.weight")
    save_file(weights, file)
    with pytest.raises(UserError, match=r"missing weights: 1, first quant_conv.weight"):
        open_codec("wan-vae", str(folder), CPU)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config)[:-2])
    with pytest.raises(UserError, match="does not hold a complete AutoencoderKLWan"):
        open_codec("wan-vae", str(folder), CPU)
