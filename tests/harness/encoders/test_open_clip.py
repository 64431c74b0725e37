"""Encoders of open_clip, with seeded weights instead of published ones: nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from harness.encoders.open_clip import OpenClipEncoder
from harness.errors import UserError
from metrics.extractors.open_clip_recipe import find_recipe
from metrics.value import MetricError
from tests.support import encoders
from tests.support.encoders import pictures

OWN, FROM_TIMM = "flowrace-tiny", "flowrace-tiny-timm"
WIDTH, LAYERS, PATCH, IMAGE = 64, 2, 8, 32
TEXT = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Register two small models with open_clip and write weights of each, text tower included."""
    folder = tmp_path_factory.mktemp("open_clip")
    own = {"image_size": IMAGE, "layers": LAYERS, "width": WIDTH, "head_width": 32, "patch_size": PATCH}
    timm = {
        "image_size": 224,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "avg",
        "timm_proj": "none",
    }
    made = {}
    for model, vision, width in ((OWN, own, 48), (FROM_TIMM, timm, 192)):
        config = {"embed_dim": width, "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"{model}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    for model in (OWN, FROM_TIMM):
        draw = torch.Generator().manual_seed(0)
        state = open_clip.create_model(model).state_dict()
        state = {n: torch.randn(t.shape, generator=draw) * 0.1 + (t.ndim == 1) for n, t in state.items()}
        made[model] = folder / f"{model}.safetensors"
        save_file(state, made[model])
    return made


def opened(model: str, *words: Any, **fields: Any) -> Any:
    return encoders.opened(f"open_clip:{model}", *words, **fields)


def prepared(images: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Resize (bicubic) and normalise with CLIP's mean and deviation, by torchvision."""
    x = tv.resize((images + 1) / 2, [rows, columns], InterpolationMode.BICUBIC, antialias=False)
    return tv.normalize(x, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def by_hand(state: dict[str, torch.Tensor], x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Compute the patch tokens of CLIP's image tower, written out in float64, up to the final norm."""
    w = {n.removeprefix("visual."): t.double() for n, t in state.items() if n.startswith("visual.")}
    norm = lambda h, name: F.layer_norm(h, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    patches = F.conv2d(x.double(), w["conv1.weight"], stride=PATCH).flatten(2).mT
    h = torch.cat([w["class_embedding"].expand(len(x), 1, -1), patches], 1)
    places = w["positional_embedding"]
    if grid != (4, 4):
        square = places[1:].T.reshape(1, WIDTH, 4, 4)
        resized = F.interpolate(square, grid, mode="bicubic", antialias=True)[0].flatten(1).T
        places = torch.cat([places[:1], resized])
    h = norm(h + places, "ln_pre")
    for layer in range(LAYERS):
        at = f"transformer.resblocks.{layer}"
        y = norm(h, f"{at}.ln_1") @ w[f"{at}.attn.in_proj_weight"].T + w[f"{at}.attn.in_proj_bias"]
        q, k, v = y.unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.mT) / 32**0.5).softmax(-1) @ v
        h = h + mixed.transpose(1, 2).flatten(2) @ w[f"{at}.attn.out_proj.weight"].T
        h = h + w[f"{at}.attn.out_proj.bias"]
        y = norm(h, f"{at}.ln_2") @ w[f"{at}.mlp.c_fc.weight"].T + w[f"{at}.mlp.c_fc.bias"]
        h = h + F.gelu(y) @ w[f"{at}.mlp.c_proj.weight"].T + w[f"{at}.mlp.c_proj.bias"]
    return norm(h, "ln_post")[:, 1:]


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (2, 2)])
def test_tokens_equal_those_by_hand(files: dict[str, Path], grid: tuple[int, int]) -> None:
    encoder = opened(OWN, files[OWN], grid=grid)
    found = encoder.features(pictures())
    expected = by_hand(
        load_file(files[OWN]), prepared(pictures(), grid[0] * PATCH, grid[1] * PATCH), grid
    ).float()
    assert found.shape == (2, grid[0] * grid[1], WIDTH) and encoder.dim == WIDTH
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_timm_tower_gives_its_patch_tokens(files: dict[str, Path]) -> None:
    """The reference: the full open_clip model, its prefix token dropped."""
    model = open_clip.create_model(FROM_TIMM).eval()
    model.load_state_dict(load_file(files[FROM_TIMM]))
    model.visual.trunk.set_input_size(img_size=(64, 64))
    with torch.no_grad():
        expected = model.visual.trunk.forward_features(prepared(pictures(), 64, 64))
    assert expected.shape[1] == 17
    found = opened(FROM_TIMM, files[FROM_TIMM]).features(pictures())
    torch.testing.assert_close(found, expected[:, 1:], atol=1e-5, rtol=1e-4)


def test_tokens_are_in_row_major_order(files: dict[str, Path]) -> None:
    """Without blocks, a change in the top right corner of a 4x4 grid changes token 3, not token 12."""
    encoder = opened(OWN, files[OWN])
    encoder._network.tower.transformer = torch.nn.Identity()
    images = pictures()
    changed = images.clone()
    changed[:, :, :6, 26:] += 0.5
    moved = (encoder.features(changed) - encoder.features(images)).abs().sum((0, 2))
    assert moved.argmax() == 3 and moved[12] == 0


def test_grey_image_equals_its_channel_repeated(files: dict[str, Path]) -> None:
    encoder = opened(OWN, files[OWN], channels=1)
    grey = pictures(1)
    assert torch.equal(encoder.features(grey), encoder.features(grey.repeat(1, 3, 1, 1)))


def test_encoder_is_frozen_and_computes_in_float32(files: dict[str, Path]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    encoder = opened(OWN, files[OWN])
    assert torch.equal(before, torch.get_rng_state())
    features = encoder.features(pictures().requires_grad_())
    assert (features.requires_grad, features.dtype) == (False, torch.float32)
    assert not encoder._network.training
    assert not any(p.requires_grad for p in encoder._network.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.features(pictures()).dtype == torch.float32


def test_encoder_reports_hash_flops_and_parameters(files: dict[str, Path]) -> None:
    digest = hashlib.sha256(files[OWN].read_bytes()).hexdigest()
    encoder = opened(OWN, files[OWN], sha256=digest)
    assert (encoder.sha256, encoder.accuracy) == (digest, None)
    # Four matrices and two products in each block; patches of 8x8x3.
    tokens = 16 + 1
    blocks = LAYERS * (2 * tokens * 12 * WIDTH**2 + 4 * tokens**2 * WIDTH)
    assert encoder.flops == 2 * 16 * 3 * PATCH**2 * WIDTH + blocks
    tower = {n: t.numel() for n, t in load_file(files[OWN]).items() if n.startswith("visual.")}
    assert encoder.params == sum(tower.values()) - tower["visual.proj"]


@pytest.mark.parametrize(
    ("model", "dim", "gmacs"),
    [("ViT-L-14.openai", 1024, 81.1), ("ViT-B-16-SigLIP.webli", 768, 23.1), ("EVA02-B-16", 768, 23.2)],
)
def test_architecture_needs_no_weights(model: str, dim: int, gmacs: float) -> None:
    """A tower of width d and depth n takes n (12 d^2 T + 2 T^2 d) multiply-adds, and those of the patches.

    T is the number of tokens, 16x16 and the prefix.
    """
    about = OpenClipEncoder.architecture(model, (3, 256, 256), 1000, (16, 16))
    assert about.dim == dim
    assert about.flops / 2e9 == pytest.approx(gmacs, rel=0.01)


def test_recipe_has_normalisation_and_activation_of_the_training() -> None:
    clip, siglip = find_recipe("ViT-L-14.openai"), find_recipe("ViT-B-16-SigLIP")
    assert clip.quick_gelu and clip.mean == (0.48145466, 0.4578275, 0.40821073)
    assert (siglip.mean, siglip.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) and not siglip.quick_gelu
    assert clip.repository == "timm/vit_large_patch14_clip_224.openai"
    with pytest.raises(MetricError, match=r"different training.*open_clip:ViT-L-14\.openai"):
        find_recipe("ViT-L-14")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ViT-B-17", "Did you mean 'ViT-B-1"),
        ("ViT-B-16.nope", "has no weights 'nope' .*openai"),
        ("RN50.openai", "'open_clip:RN50' is not a ViT"),
        ("convnext_small", "'open_clip:convnext_small' is not a ViT"),
        ("coca_ViT-B-32.laion2b_s13b_b90k", "is not a ViT"),
        ("MobileCLIP-B.datacompdr", "'open_clip:MobileCLIP-B' is not a ViT"),
        ("ViTamin-S.datacomp1b", "is not a ViT"),
    ],
)
def test_model_is_rejected_when_unknown_or_not_a_vit(model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(model)


def test_missing_weights_error_names_the_download(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, Path], tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    where = r"huggingface.co/timm/vit_base_patch16_clip_224\.openai/resolve/main/open_clip_model\.safetensors"
    with pytest.raises(UserError, match=f"{where}.*download=true"):
        opened("ViT-B-16.openai")
    with pytest.raises(UserError, match=r"not on this machine \(.*download https"):
        opened("ViT-B-16.openai", download=True)
    with pytest.raises(UserError, match="has no weights on the hub"):
        opened(OWN)
    with pytest.raises(UserError, match="no such file"):
        opened(OWN, tmp_path / "absent.safetensors")


def test_weights_file_is_rejected_when_damaged_or_of_another_model(
    files: dict[str, Path], tmp_path: Path
) -> None:
    pickled, cut, part = (tmp_path / name for name in ("a.bin", "b.safetensors", "c.safetensors"))
    pickled.write_bytes(pickle.dumps({"weight": Path("x")}))
    cut.write_bytes(files[OWN].read_bytes()[:5000])
    for file in (pickled, cut):
        with pytest.raises(UserError, match="does not hold weights that can be read safely"):
            opened(OWN, file)
    state = load_file(files[OWN])
    save_file({n: t for n, t in state.items() if not n.startswith("visual.")}, part)
    with pytest.raises(UserError, match="holds no image tower"):
        opened(OWN, part)
    save_file({n: t for n, t in state.items() if "resblocks.1.ln_1" not in n}, part)
    with pytest.raises(UserError, match=r"lacks .*resblocks\.1\.ln_1"):
        opened(OWN, part)
    with pytest.raises(UserError, match="does not hold the weights of encoder"):
        opened(OWN, files[FROM_TIMM])
    with pytest.raises(UserError, match=r"method\.encoder\.sha256 is abc"):
        opened(OWN, files[OWN], sha256="abc")
