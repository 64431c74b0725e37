"""Networks of timm and open_clip as extractors: against transformers, Pillow, and a plain bicubic."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from metrics import MetricError, load_extractor
from metrics.extractors.registry import extractors
from metrics.extractors.resize import Pixels, resize
from metrics.extractors.timm import authors_positions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY_CLIP = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1},
}


def bytes_(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def draw(network: nn.Module) -> nn.Module:
    """Draw random weights, so that every parameter affects the output."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.05 + (parameter.ndim == 1))
    return network.eval()


# Pixels


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(24, 40), (9, 7)])
def test_resize_equals_pillow(mode: str, size: tuple[int, int]) -> None:
    images = bytes_(0, 3, 3, 20, 26)
    how = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[mode]
    pillow = [
        np.asarray(Image.fromarray(x).resize(size[::-1], how)) for x in images.permute(0, 2, 3, 1).numpy()
    ]
    found = resize(images.float(), size, mode).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - np.stack(pillow)).max() <= 1
    assert np.array_equal(found, found.round()) and 0 <= found.min() <= found.max() <= 255


def test_images_of_the_right_size_are_only_normalised() -> None:
    images = bytes_(1, 2, 3, 6, 5)
    pixels = Pixels((6, 5), MEAN, STD)
    expected = (images.double().numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(pixels.prepare(images), expected, atol=1e-6)
    assert pixels.words.startswith("6x5 bicubic with antialias, rounded to bytes; / 255, mean")


@pytest.mark.parametrize("shape", [(41, 30), (30, 41), (20, 20), (7, 16)])
def test_centre_square_equals_cmmd(shape: tuple[int, int]) -> None:
    """google-research/cmmd, io_util.py: Pillow's crop from the floor of half the rest, then its bicubic."""
    images, side = bytes_(2, 2, 3, *shape), min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    pillow = np.stack([
        np.asarray(
            Image.fromarray(x)
            .crop((left, top, left + side, top + side))
            .resize((16, 16), Image.Resampling.BICUBIC)
        )
        for x in images.permute(0, 2, 3, 1).numpy()
    ])  # fmt: skip
    pixels = Pixels((16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), square=True)
    found = 255 * pixels.prepare(images).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - pillow).max() <= 1.001 and np.abs(found - pillow).mean() < 0.01
    assert pixels.words.startswith("centre square, 16x16 bicubic with antialias")


# timm


def test_timm_network_returns_its_pooled_features(tmp_path: Path) -> None:
    """The file of a convolutional network also holds a classifier, which is ignored."""
    network = draw(timm.create_model("resnet10t", pretrained=False))
    file = tmp_path / "net.safetensors"
    save_file(network.state_dict(), file)
    extract, images = load_extractor("timm:resnet10t", weights=file), bytes_(2, 2, 3, 40, 30)
    config = network.pretrained_cfg
    size = tuple(config["input_size"][1:])
    x = resize(images.float(), size, config["interpolation"]) / 255
    x = (x - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(config["std"]).view(3, 1, 1)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
    torch.testing.assert_close(extract(images), expected, rtol=1e-4, atol=1e-5)
    assert (extract.name, extract.dim) == ("timm:resnet10t", 512)
    assert extract.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert extract.preprocessing.startswith(f"{size[0]}x{size[1]} {config['interpolation']} with antialias")


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """transformers' DINOv2 of the small size with random weights, and the same in the authors' layout."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, layerscale_value=1.0, num_hidden_layers=12
    )
    theirs = draw(Dinov2Model(config))
    file = tmp_path_factory.mktemp("dinov2") / "dinov2_vits14_pretrain.pth"
    torch.save(authors_layout(theirs.state_dict()), file)
    return theirs, file


def authors_layout(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names -> those of facebookresearch/dinov2."""
    simple = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    inner = {
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
    }
    found = {}
    for name, x in given.items():
        if name in simple:
            found[simple[name]] = x
        elif "attention.k_proj" in name:
            parts = [given[name.replace("k_proj", f"{part}_proj")] for part in "qkv"]
            new = name.replace("encoder.layer", "blocks").replace("attention.k_proj", "attn.qkv")
            found[new] = torch.cat(parts)
        elif "q_proj" not in name and "v_proj" not in name:
            new = name.replace("encoder.layer", "blocks")
            for old, other in inner.items():
                new = new.replace(old, other)
            found[new] = x
    return found


def test_dinov2_equals_transformers_class_token(dinov2) -> None:
    theirs, file = dinov2
    extract, images = load_extractor("dinov2-s", weights=file), bytes_(3, 2, 3, 50, 60)
    with torch.no_grad():
        table = theirs.embeddings.position_embeddings
        before = table.data
        table.data = authors_positions(before, 16)  # transformers resamples by size, the authors by a factor
        expected = theirs(Pixels((224, 224), MEAN, STD).prepare(images)).last_hidden_state[:, 0]
        table.data = before
    torch.testing.assert_close(extract(images), expected, rtol=1e-3, atol=1e-4)
    assert (extract.name, extract.dim) == ("dinov2-s", 384)
    assert extract.preprocessing.startswith("224x224 bicubic with antialias")


def test_position_embedding_is_resized_as_by_the_authors() -> None:
    """Cubic convolution with a = -0.75 at (i + 1/2) M / (grid + 0.1) - 1/2, written out in float64."""
    known, grid, a = 9, 4, -0.75
    positions = torch.randn(1, 1 + known**2, 3, generator=torch.Generator().manual_seed(0))

    def weight(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    matrix = np.zeros((grid, known))
    for i in range(grid):
        centre = (i + 0.5) * known / (grid + 0.1) - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(j, 0), known - 1)] += weight(centre - j)
    maps = positions[0, 1:].double().numpy().reshape(known, known, 3)
    expected = np.einsum("ij,kl,jlc->ikc", matrix, matrix, maps).reshape(-1, 3)
    found = authors_positions(positions, grid)
    np.testing.assert_allclose(found[0, 1:], expected, atol=1e-5)
    assert torch.equal(found[:, 0], positions[:, 0])
    assert authors_positions(positions, known) is positions


@pytest.mark.slow
def test_weights_of_another_network_are_rejected(dinov2, tmp_path: Path) -> None:
    _, file = dinov2
    with pytest.raises(MetricError, match=r"pth does not hold the weights of dinov2-b: size mismatch"):
        load_extractor("dinov2-b", weights=file)
    tensors = torch.load(file, weights_only=True)
    for change, says in (
        (lambda t: t.pop("norm.bias"), "it lacks norm.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "it also holds extra"),
    ):
        given = dict(tensors)
        change(given)
        save_file({k: v.contiguous() for k, v in given.items()}, tmp_path / "other.safetensors")
        with pytest.raises(MetricError, match=says):
            load_extractor("dinov2-s", weights=tmp_path / "other.safetensors")
    with pytest.raises(MetricError, match="is not the expected file"):
        load_extractor("dinov2-s", weights=file, sha256="00ff")


# open_clip


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Path]:
    """Return a tiny CLIP, registered in open_clip, as transformers' vision model and as open_clip's file."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY_CLIP)
    model = draw(open_clip.create_model("tiny"))
    file = tmp_path / "clip.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=256, projection_dim=24, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8, hidden_act="quick_gelu",
    )  # fmt: skip
    theirs = CLIPVisionModelWithProjection(config).eval()
    theirs.load_state_dict(transformers_layout(model.visual.state_dict()), strict=False)
    return theirs, file


def transformers_layout(given: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {
        "visual_projection.weight": given["proj"].T,
        "vision_model.embeddings.class_embedding": given["class_embedding"],
        "vision_model.embeddings.position_embedding.weight": given["positional_embedding"],
        "vision_model.embeddings.patch_embedding.weight": given["conv1.weight"],
    }
    norms = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}
    blocks = {
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    for name, x in given.items():
        kind = name.rpartition(".")[2]
        for ours, other in norms.items():
            if name.startswith(ours):
                found[f"vision_model.{other}.{kind}"] = x
        if name.startswith("transformer.resblocks."):
            _, _, layer, rest = name.split(".", 3)
            where = f"vision_model.encoder.layers.{layer}"
            if "in_proj" in rest:
                kind = rest.removeprefix("attn.in_proj_")
                for part, y in zip("qkv", x.chunk(3), strict=True):
                    found[f"{where}.self_attn.{part}_proj.{kind}"] = y
            for ours, other in blocks.items():
                if rest.startswith(ours):
                    found[f"{where}.{other}.{kind}"] = x
    return found


def test_clip_equals_transformers_with_the_preprocessing_of_cmmd(
    clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """google-research/cmmd: the centre square by Pillow's bicubic (io_util.py), in [0, 1], CLIP's mean and
    deviation."""
    theirs, file = clip
    monkeypatch.setattr("metrics.extractors.open_clip.CMMD", "tiny")
    extract, images = load_extractor("clip-vit-l-336", weights=file), bytes_(4, 2, 3, 50, 40)
    pillow = [
        np.asarray(Image.fromarray(x).crop((0, 5, 40, 45)).resize((32, 32), Image.Resampling.BICUBIC))
        for x in images.permute(0, 2, 3, 1).numpy()
    ]
    x = torch.from_numpy(np.stack(pillow)).permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        expected = theirs((x - mean) / std).image_embeds
    torch.testing.assert_close(extract(images), expected, rtol=1e-2, atol=1e-3)
    assert (extract.name, extract.dim) == ("clip-vit-l-336", 24)
    assert extract.preprocessing.startswith("centre square, 32x32 bicubic with antialias")


def test_open_clip_is_loaded_by_name(clip) -> None:
    _, file = clip
    extract, images = load_extractor("open_clip:tiny", weights=file), bytes_(5, 2, 1, 32, 32)
    assert (extract.name, extract.dim) == ("open_clip:tiny", 24)
    assert "with antialias" in extract.preprocessing
    assert torch.equal(extract(images), extract(images.expand(-1, 3, -1, -1)))


# Names, weights, packages


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm", "needs a model, for example timm:"),
        ("timm:resnet1", "timm has no model 'resnet1'. Did you mean 'resnet18'"),
        ("timm:resnet18.never", "timm:resnet18.never: Invalid pretrained tag"),
        ("open_clip", "needs a model, for example open_clip:"),
        ("open_clip:ViT-B", "open_clip has no model 'ViT-B'. Did you mean 'ViT-B-"),
        ("open_clip:ViT-B-16.never", r"has no weights 'never' \(known: openai"),
        ("open_clip:ViT-B-16", "weights of different training .*; name one of them"),
        ("dinov2-x", "unknown extractor 'dinov2-x'.*Did you mean 'dinov2-"),
        ("dinov2-s:x", "unknown extractor 'dinov2-s:x'"),
    ],
)
def test_invalid_names_are_rejected(name: str, says: str) -> None:
    with pytest.raises(MetricError, match=says):
        load_extractor(name)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("timm:resnet10t", "timm/resnet10t.c3_in1k/resolve/main/model.safetensors"),
        ("dinov2-s", "timm/vit_small_patch14_dinov2.lvd142m/resolve/main/model.safetensors"),
        (
            "open_clip:ViT-B-32.openai",
            "timm/vit_base_patch32_clip_224.openai/resolve/main/open_clip_model.safetensors",
        ),
    ],
)
def test_missing_weights_are_reported_with_their_address(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is downloaded without consent; the error names the file to download."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MetricError, match=f"are not on this machine; download https://huggingface.co/{file}"):
        load_extractor(name)
    with pytest.raises(MetricError, match=r"cannot read weights .*absent: No such file"):
        load_extractor(name, weights=tmp_path / "absent")
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    with pytest.raises(MetricError, match="does not hold weights that can be read safely"):
        load_extractor(name, weights=tmp_path / "broken.safetensors")


def test_missing_packages_are_reported_with_their_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {row.install for row in extractors()} == {""}
    rows = {row.name: row for row in extractors()}
    assert (rows["dinov2-l"].dim, rows["inception-spatial"].dim, rows["timm:<model>"].dim) == (
        1024,
        2023,
        None,
    )
    assert {row.modality for row in rows.values()} == {"image", "video", "audio"}
    monkeypatch.setattr("metrics.extractors.registry.find_spec", lambda _: None)
    missing = {row.name: row.install for row in extractors()}
    assert missing["dinov2-l"] == "pip install timm"
    assert missing["local"] == missing["torchscript:<file>"] == ""
    with pytest.raises(MetricError, match="the package 'timm' is not installed; run: pip install timm"):
        load_extractor("dinov2-l")
