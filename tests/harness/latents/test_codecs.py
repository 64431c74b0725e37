"""The SD-VAE against diffusers, and codecs addressed by their content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from harness.assembly.resolve import load_spec
from harness.config.data_spec import DataSpec
from harness.data.open import open_dataset
from harness.errors import UserError
from harness.latents.codec import addressed, open_codec
from tests.harness.latents.vae import save_dac, save_oobleck, save_rae, save_vae, save_wan

CPU = torch.device("cpu")


def test_sd_vae_agrees_with_diffusers(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    folder = save_vae(tmp_path / "vae")
    codec, vae = open_codec("sd-vae", str(folder), CPU), AutoencoderKL.from_pretrained(folder).eval()
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        drawn = posterior.sample(torch.Generator().manual_seed(0))
        images = vae.decode(drawn).sample
    mean, std = codec.encode(x)
    torch.testing.assert_close(mean + std * noise, drawn)
    assert codec.affine == ((0.0,), (0.18215,))
    assert codec.shape((3, 8, 8)) == tuple(mean.shape[1:]) == (4, 4, 4)
    torch.testing.assert_close(codec.decode(codec.affine.normalised(drawn)), images)


def test_identity_returns_the_image() -> None:
    codec, x = open_codec("identity", "", CPU), torch.rand(2, 3, 8, 8)
    mean, std = codec.encode(x)
    assert torch.equal(codec.decode(mean), x) and not std.any()


def test_codec_address_depends_only_on_content(tmp_path: Path) -> None:
    one, other = save_vae(tmp_path / "one"), save_vae(tmp_path / "other", seed=1)
    twin = Path(shutil.copytree(one, tmp_path / "twin"))
    names = [addressed(DataSpec(name="latents", codec=f"sd-vae:{path}")).codec for path in (one, twin, other)]
    assert names[0] == names[1] != names[2] and names[0].startswith("sd-vae@")
    with pytest.raises(UserError, match=f"the weights in {other} are {names[2]}"):
        open_codec(names[0], str(other), CPU)


def test_run_ids_do_not_depend_on_default_fields_of_latents() -> None:

    from harness.config.spec import canonical

    written = canonical(load_spec("digits").data)
    assert not any(field in written for field in ("codec", "posterior", "classes", "images"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.codec=identity"],
            "data.codec = 'identity' decodes latents, and data.name = 'digits' has none",
        ),
        (["data.name=latents", "data.codec=sd-vea:x"], "unknown codec 'sd-vea'.*Did you mean 'sd-vae'"),
        (["data.name=latents", "data.codec=sd-vae:nowhere"], "nowhere has no config.json; expected a folder"),
        (["data.name=latents", "data.codec=identity:x"], "codec 'identity' has no weights"),
    ],
)
def test_spec_raises_for_unusable_codecs(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_spec("digits", overrides)


def test_sd_vae_raises_for_unreadable_weights_and_unsuited_samples(tmp_path: Path) -> None:
    folder = save_vae(tmp_path / "vae")
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="does not hold a complete AutoencoderKL"):
        open_codec("sd-vae", str(folder), CPU)
    with pytest.raises(UserError, match=r"needs 3 channels, but the samples have 1; set data.channels=3"):
        open_codec("sd-vae", str(save_vae(tmp_path / "good")), CPU).shape((1, 8, 8))
    with pytest.raises(UserError, match="sides that are multiples of 2"):
        open_codec("sd-vae", str(tmp_path / "good"), CPU).shape((3, 7, 8))


SAVED = {"sd-vae": save_vae, "wan-vae": save_wan, "oobleck": save_oobleck, "dac": save_dac, "rae": save_rae}


@pytest.mark.parametrize("family", SAVED)
def test_codec_raises_one_line_for_a_damaged_folder(tmp_path: Path, family: str) -> None:
    folder = SAVED[family](tmp_path / "w")
    (weights,) = folder.glob("*.safetensors")
    for file, contents in (
        (weights, [weights.read_bytes()[:cut] for cut in (0, 4, 100, -1)]),
        (folder / "config.json", [b"[]", b'"x"', b"3", b"null", b"{", b"\xff"]),
    ):
        intact = file.read_bytes()
        for content in contents:
            file.write_bytes(content)
            with pytest.raises(
                UserError, match=rf"codec '{family}': \S+ does not hold a complete \w+: ."
            ) as raised:
                open_codec(family, str(folder), CPU)
            assert "\n" not in str(raised.value)
        file.write_bytes(intact)
    open_codec(family, str(folder), CPU)


def test_outline_needs_resolution_and_classes_in_the_spec() -> None:
    from harness.data.open import outlined

    shape = outlined(DataSpec(name="latents", resolution=256, classes=1000))
    assert (shape.shape, shape.pictures.shape, shape.classes) == ((4, 32, 32), (3, 256, 256), 1000)
    with pytest.raises(UserError, match=r"a plan without data needs data.resolution and data.classes"):
        outlined(DataSpec(name="latents"))
    with pytest.raises(UserError, match=r"data.root is empty"):
        open_dataset(DataSpec(name="latents", resolution=256, classes=1000))
