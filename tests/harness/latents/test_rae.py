"""Representation autoencoders: released ones against diffusers, trained ones against their parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from harness.cli.main import cli
from harness.config.data_spec import DataSpec
from harness.data.open import from_pixels, images, open_dataset, outlined, split
from harness.encoders.base import Choice, open_encoder
from harness.errors import UserError
from harness.latents.codec import addressed, open_codec
from harness.latents.rae_folder import MODEL
from harness.latents.rae_training import Recipe, train
from harness.records import checkpoint
from tests.harness.latents.vae import save_images, save_rae
from tests.support.encoded import encode
from tests.support.runs import events, tiny, trained

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("quick_networks")
TRAIN = ["data", "rae", "digits", "--grid", "4", "--decoder", "1x16x2", "--steps", "2", "--device", "cpu"]


def trained_rae(out: Path, *options: str, encoder: str = "local:tiny") -> Path:
    words = [*TRAIN, "--encoder", encoder, "--out", str(out), *options]
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


def error_of(*words: str) -> str:
    result = CliRunner().invoke(cli, [*TRAIN, *words])
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


@pytest.fixture(scope="module")
def rae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_rae(tmp_path_factory.mktemp("rae") / "rae")


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory, rae: Path) -> Path:
    folder = tmp_path_factory.mktemp("latents") / "latents"
    about = encode("digits", f"rae:{rae}", folder, "--batch", "300")
    assert (about["shape"], about["pixels"]) == ([32, 4, 4], [1, 8, 8])
    return folder


def features(count: int) -> torch.Tensor:
    """Return the features (count, 32, 4, 4) of the first digits under the encoder of runs on them."""
    dataset = open_dataset(DataSpec())
    encoder = open_encoder(Choice("local:tiny"), dataset, grid=(4, 4), held_out=0.1, device=CPU)
    x = from_pixels(images(dataset, np.arange(count))[0])
    return encoder.features(x).transpose(1, 2).reshape(count, 32, 4, 4)


def test_released_rae_agrees_with_diffusers(tmp_path: Path) -> None:
    from diffusers import AutoencoderRAE

    folder = save_rae(tmp_path / "rae")
    codec, network = open_codec("rae", str(folder), CPU), AutoencoderRAE.from_pretrained(folder).eval()
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        z = network.encode(x).latent
        decoded = network.decode(z).sample
    mean, std = codec.encode(2 * x - 1)
    torch.testing.assert_close(mean, z, rtol=1e-4, atol=1e-5)
    assert codec.shape((3, 8, 8)) == tuple(z.shape[1:]) == (64, 2, 2) and not std.any()
    assert torch.equal(codec.affine.normalised(z), z)
    torch.testing.assert_close((codec.decode(z) + 1) / 2, decoded, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"needs 3 channels, but the samples have 1; set data.channels=3"):
        codec.shape((1, 8, 8))
    with pytest.raises(
        UserError, match=r"needs 8x8 pixels, but the samples are 16x16; set data.resolution=8"
    ):
        codec.shape((3, 16, 16))


@pytest.mark.parametrize("name", ["model.pt", "stat.pt"])
def test_pickled_release_is_rejected_with_the_readable_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(
            UserError, match=r"holds pickled weights, which are not read; .*nyu-visionx/RAE-dinov2"
        ):
            addressed(DataSpec(name="latents", codec=f"rae:{path}"))


def test_latents_of_training_images_have_unit_statistics_at_each_place(rae: Path) -> None:
    codec, dataset = open_codec("rae", str(rae), CPU), open_dataset(DataSpec())
    index = split(dataset, 0.1).train
    z = codec.encode(from_pixels(images(dataset, index)[0])).mean.double().numpy()
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-3)
    varied = features(len(dataset))[index].double().numpy().var(0) > 1e-2
    np.testing.assert_allclose(z.std(0)[varied], 1, rtol=1e-2)


def test_latents_are_the_normalised_features_of_the_encoder(rae: Path, latents: Path) -> None:
    """Stored without a standard deviation, which draws do not need."""
    stored = checkpoint.load(rae / "model.safetensors").part("latents")
    expected = (features(9) - stored["mean"]) / stored["std"]
    dataset = open_dataset(DataSpec(name="latents", root=str(latents)))
    drawn = dataset.draws(np.arange(9), None, torch.ones(9, 32, 4, 4))
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)
    manifest = json.loads((latents / "latents.json").read_text())
    shards = sum((latents / n).stat().st_size for n in manifest["files"] if n.startswith("shard-"))
    assert manifest["holds"] == "sample" and shards == pytest.approx(len(dataset) * 32 * 4 * 4 * 4, rel=1e-3)


def test_folder_is_addressed_by_content_and_needs_no_data(rae: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(rae, tmp_path / "copied"))
    one, other = (addressed(DataSpec(name="latents", codec=f"rae:{path}")) for path in (rae, copied))
    assert one.codec == other.codec and one.codec.startswith("rae@")
    planned = one.model_copy(update={"resolution": 8, "channels": 1, "classes": 10})
    assert outlined(planned).shape == (32, 4, 4)
    z = torch.randn(2, 32, 4, 4)
    codecs = [open_codec(one.codec, str(path), CPU) for path in (rae, copied)]
    assert torch.equal(*(codec.decode(z) for codec in codecs)) and codecs[0].decode(z).shape == (2, 1, 8, 8)


def test_damaged_folder_is_rejected_in_one_line(rae: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(rae, tmp_path / "rae"))
    weights, file = folder / "model.safetensors", folder / "config.json"
    config = json.loads(file.read_text())
    broken = [b"[]", b"null", b"{", b"\xff", json.dumps({**config, "grid": 3}).encode()]
    broken += [json.dumps({**config, "decoder": name}).encode() for name in ("99999x16x2", "1x32x2", "huge")]
    broken += [json.dumps({**config, "classes": 10**15}).encode()]
    broken += [json.dumps({**config, "pixels": [3, 8192, 8192], "grid": 1}).encode()]
    cases = [(file, content) for content in broken]
    cases += [(weights, weights.read_bytes()[:cut]) for cut in (0, 100, -1)]
    for damaged, content in cases:
        intact = damaged.read_bytes()
        damaged.write_bytes(content)
        with pytest.raises(
            UserError, match=r"codec 'rae': \S+ does not hold a complete FlowraceRAE: ."
        ) as raised:
            open_codec("rae", str(folder), CPU)
        assert "\n" not in str(raised.value)
        damaged.write_bytes(intact)
    file.unlink()
    with pytest.raises(UserError, match=r"has no config.json; train it again"):
        open_codec("rae", str(folder), CPU)


def test_folder_with_code_or_another_encoder_is_rejected(rae: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(rae, tmp_path / "rae"))
    config = json.loads((folder / "config.json").read_text())
    for entry, message in (
        ({"name": "torchscript:x?size=8&dim=32&flops=1"}, "is code, which a codec's folder must not hold"),
        ({"sha256": 64 * "0"}, "was made with encoder 'local:tiny' of sha256 00000000, but the weights here"),
        ({"file": "../encoder.pt"}, "is a path"),
    ):
        changed = {**config, "encoder": {**config["encoder"], **entry}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            open_codec("rae", str(folder), CPU)


def test_training_is_rejected_for_wrong_choices(tmp_path: Path, rae: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert "must divide the side of square images" in error_of(
        "--encoder", "random:tiny", "--grid", "3", *out
    )
    assert "unknown size" in error_of("--encoder", "random:tiny", "--decoder", "huge", *out)
    for encoder in ("cached:local:tiny", "pca:2:local:tiny", "run:runs/0123456789ab", "torchscript:x", "x:y"):
        assert "choose one of timm, open_clip, local, random" in error_of("--encoder", encoder, *out)
    assert "is not empty" in error_of("--encoder", "random:tiny", "--out", str(rae))
    assert not (tmp_path / "out").exists()


def test_run_with_repa_trains_on_rae_latents(latents: Path, tmp_path: Path) -> None:
    shift = ("time.shift=dimension", "eval.sampler_shift=dimension", "eval.sampler=euler")
    where = ("data.name=latents", f"data.root={latents}", "backbone.patch=1", "eval.metrics=['fd:local']")
    method = ("method.name=repa", "method.encoder.name=local:tiny", "train.steps=2", "eval.every=2")
    record = trained(tiny(*where, *shift, *method), tmp_path / "runs")
    last = events(record)[-2:]
    assert record.of("eval")[-1]["metrics"]["fd:local"]["mean"] > 0, last
    assert record.environment[0]["evaluation"]["protocol"]["shape"] == [1, 8, 8]
    assert set(record.of("train")[-1]["losses"]) >= {"flow", "align"}


@pytest.mark.slow
def test_decoder_improves_with_training_and_has_the_same_bits_twice() -> None:
    dataset = open_dataset(DataSpec())
    trained_for = {}
    for steps in (1, 150, 150):
        recipe = Recipe(grid=4, decoder="2x32x2", steps=steps, batch=32, learning_rate=3e-3)
        made = train(Choice("random:small"), dataset, recipe, CPU, lambda n: None)
        if steps in trained_for:
            assert checkpoint.digest(made.tensors) == checkpoint.digest(trained_for[steps].tensors)
        trained_for[steps] = made
    assert trained_for[150].psnr > trained_for[1].psnr + 3


@pytest.mark.slow
def test_folder_has_the_weights_of_a_published_encoder(tmp_path: Path) -> None:
    """Latents are timm's tokens, normalised; the file that was given is no longer needed."""
    import timm
    from safetensors.torch import save_file

    model, file = "vit_tiny_patch16_224", tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    network = timm.create_model(model, pretrained=False).eval()
    save_file(network.state_dict(), file)
    images_file = save_images(tmp_path / "images.npz", side=32)
    words = ["--encoder", f"timm:{model}", "--weights", str(file), "--grid", "2", "--decoder", "1x16x2"]
    command = ["data", "rae", str(images_file), *words, "--steps", "1", "--out", str(tmp_path / "rae")]
    assert CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 0
    file.unlink()
    codec, stored = open_codec("rae", str(tmp_path / "rae"), CPU), checkpoint.load(tmp_path / "rae" / MODEL)
    x = from_pixels(images(open_dataset(DataSpec(name="npz", root=str(images_file))), np.arange(3))[0])
    network.set_input_size(img_size=(32, 32))
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        tokens = network.forward_features(((x + 1) / 2 - mean) / std)[:, 1:]
    latents = tokens.transpose(1, 2).reshape(3, 192, 2, 2)
    expected = (latents - stored.tensors["latents.mean"]) / stored.tensors["latents.std"]
    torch.testing.assert_close(codec.encode(x).mean, expected, rtol=1e-3, atol=1e-3)
    (tmp_path / "rae" / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match="no such file"):
        open_codec("rae", str(tmp_path / "rae"), CPU)
