"""Encoders of timm, with seeded weights instead of published ones: nothing is downloaded."""

from __future__ import annotations

import copy
import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from harness.encoders.timm import TimmEncoder
from harness.errors import UserError
from tests.support import encoders
from tests.support.encoders import pictures

PLAIN, REGISTERS = "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write weights of both models, no tensor at its initial value, the classifier included."""
    made = {}
    for model in (PLAIN, REGISTERS):
        draw = torch.Generator().manual_seed(0)
        state = timm.create_model(model, pretrained=False).state_dict()
        state = {
            name: torch.randn(t.shape, generator=draw) * 0.05 + (t.ndim == 1) for name, t in state.items()
        }
        made[model] = tmp_path_factory.mktemp("weights") / f"{model}.safetensors"
        save_file(state, made[model])
    return made


def opened(model: str, *words: Any, **fields: Any) -> Any:
    return encoders.opened(f"timm:{model}", *words, **fields)


@pytest.fixture(scope="module")
def plain(files: dict[str, Path]) -> Any:
    """Return the plain encoder; a test that changes it takes a copy."""
    return opened(PLAIN, files[PLAIN])


@pytest.fixture(scope="module")
def registers(files: dict[str, Path]) -> Any:
    return opened(REGISTERS, files[REGISTERS])


@pytest.mark.parametrize(
    ("model", "grid", "prefix"),
    [
        pytest.param(PLAIN, (4, 4), 1, marks=pytest.mark.slow),
        pytest.param(REGISTERS, (4, 4), 5, marks=pytest.mark.slow),
        (REGISTERS, (3, 5), 5),
    ],
)
def test_tokens_equal_those_of_timm(
    files: dict[str, Path], model: str, grid: tuple[int, int], prefix: int
) -> None:
    """The reference: torchvision's preparation, and positions that timm resamples in the forward pass."""
    network = timm.create_model(model, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    state = load_file(files[model])
    network.load_state_dict({name: t for name, t in state.items() if not name.startswith("head.")})
    patch, config = network.patch_embed.patch_size[0], network.pretrained_cfg
    images = pictures()
    x = tv.normalize((images + 1) / 2, config["mean"], config["std"])
    x = tv.resize(x, [grid[0] * patch, grid[1] * patch], InterpolationMode.BICUBIC, antialias=False)
    with torch.no_grad():
        expected = network.forward_features(x)[:, prefix:]
    encoder = opened(model, files[model], grid=grid)
    found = encoder.features(images)
    assert found.shape == (2, grid[0] * grid[1], encoder.dim)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("model", "prefix"), [(PLAIN, 1), (REGISTERS, 5)])
def test_attention_equals_that_of_timm_among_patches(files: dict[str, Path], model: str, prefix: int) -> None:
    """The reference: maps of timm's unfused kernel, cut to the patches and normalised again."""
    encoder, maps_of_blocks = opened(model, files[model]), []
    view = encoder.view(pictures(), summary=True, attention=2)
    for block in encoder._network.blocks[-2:]:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, __, out: maps_of_blocks.append(out))
    tokens = encoder._network.forward_features(_prepared(encoder, pictures()))
    maps = torch.stack(maps_of_blocks, dim=1)[..., prefix:, prefix:]
    torch.testing.assert_close(view.attention, maps / maps.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(view.summary, tokens[:, 0], atol=1e-4, rtol=1e-4)
    assert encoder.heads == view.attention.shape[2]


def test_attention_is_rejected_for_a_network_that_rotates_queries(tmp_path: Path) -> None:
    rope = "vit_small_patch16_dinov3.lvd1689m"
    about = TimmEncoder.architecture(rope, (3, 32, 32), 10, (4, 4))
    assert about.heads == 0
    file = tmp_path / "rope.safetensors"
    save_file(timm.create_model(rope, pretrained=False).state_dict(), file)
    with pytest.raises(UserError, match="does not expose its attention; choose a plain ViT"):
        opened(rope, file).view(pictures(), attention=1)


def _prepared(encoder: TimmEncoder, images: torch.Tensor) -> torch.Tensor:
    x = ((images + 1) / 2 - encoder._mean) / encoder._std
    return torch.nn.functional.interpolate(x, size=encoder._size, mode="bicubic")


def test_tokens_are_in_row_major_order(plain: Any) -> None:
    """Without blocks, a change in the top right corner of a 4x4 grid changes token 3, not token 12."""
    encoder = copy.deepcopy(plain)
    encoder._network.blocks = torch.nn.Identity()
    images = pictures()
    changed = images.clone()
    changed[:, :, :6, 26:] += 0.5
    moved = (encoder.features(changed) - encoder.features(images)).abs().sum((0, 2))
    assert moved.argmax() == 3
    assert moved[12] == 0


def test_grey_image_equals_its_channel_repeated(files: dict[str, Path], plain: Any) -> None:
    grey = pictures(1)
    found = opened(PLAIN, files[PLAIN], channels=1).features(grey)
    assert torch.equal(found, plain.features(grey.repeat(1, 3, 1, 1)))


def test_encoder_is_frozen_and_computes_in_float32(files: dict[str, Path]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    encoder = opened(PLAIN, files[PLAIN])
    assert torch.equal(before, torch.get_rng_state())
    images = pictures().requires_grad_()
    features = encoder.features(images)
    assert (features.requires_grad, features.dtype) == (False, torch.float32)
    assert not encoder._network.training
    assert not any(p.requires_grad for p in encoder._network.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.features(images).dtype == torch.float32


def test_encoder_reports_hash_width_and_flops(files: dict[str, Path]) -> None:
    """Torch does not count the CPU's fused attention kernel, so the counted pass runs without it."""
    digest = hashlib.sha256(files[REGISTERS].read_bytes()).hexdigest()
    encoder = opened(REGISTERS, files[REGISTERS], sha256=digest.upper())
    assert (encoder.sha256, encoder.dim, encoder.accuracy) == (digest, 384, None)
    for block in encoder._network.blocks:
        block.attn.fused_attn = False
    with FlopCounterMode(display=False) as counter:
        encoder.features(pictures()[:1])
    assert counter.get_total_flops() == encoder.flops
    # Patches of 14x14x3; 12 blocks of width 384 over 16 + 5 tokens, with four matrices and two products each.
    tokens, width = 21, 384
    blocks = 12 * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)
    assert encoder.flops == 2 * 16 * 588 * width + blocks


def test_released_layout_is_converted(files: dict[str, Path], registers: Any, tmp_path: Path) -> None:
    """Meta's layout of DINOv2: a mask token, register_tokens, and a class token in the positions."""
    state = {n: t for n, t in load_file(files[REGISTERS]).items() if not n.startswith("head.")}
    meta = dict(state)
    meta["mask_token"] = torch.zeros(1, 384)
    meta["register_tokens"] = meta.pop("reg_token")
    # timm stores no position for the class token; it adds that position to cls_token.
    place = torch.full((1, 1, 384), 0.25)
    meta["pos_embed"] = torch.cat([place, state["pos_embed"]], 1)
    meta["cls_token"] = state["cls_token"] - place
    save_file(meta, tmp_path / "meta.safetensors")
    found = opened(REGISTERS, tmp_path / "meta.safetensors").features(pictures())
    torch.testing.assert_close(found, registers.features(pictures()), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("vit_tinny_patch16_224", "Did you mean 'vit_tiny_patch16_224'"),
        ("vit_base_patch14_dinov2.nope", "Invalid pretrained tag"),
        ("resnet18", "not a ViT"),
        ("swin_tiny_patch4_window7_224", "not a ViT"),
        ("vit_small_r26_s32_224", "cannot place its tokens on a grid of 4x4"),
    ],
)
def test_model_is_rejected_when_unknown_or_not_a_vit(model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(model)


def test_missing_weights_error_names_the_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"huggingface.co/timm/vit_tiny_patch16_224\.\S+/model.safetensors.*download=true"
    ):
        opened(PLAIN)
    with pytest.raises(UserError, match=r"not on this machine \(.*download https"):
        opened(PLAIN, download=True)
    with pytest.raises(UserError, match="no such file"):
        opened(PLAIN, tmp_path / "absent.safetensors")


def test_weights_file_is_rejected_when_damaged_or_of_another_model(
    files: dict[str, Path], tmp_path: Path
) -> None:
    pickled, cut, part = (tmp_path / name for name in ("a.bin", "b.safetensors", "c.safetensors"))
    pickled.write_bytes(pickle.dumps({"weight": Path("x")}))
    cut.write_bytes(files[PLAIN].read_bytes()[:5000])
    for file in (pickled, cut):
        with pytest.raises(UserError, match="does not hold weights that can be read safely"):
            opened(PLAIN, file)
    state = load_file(files[PLAIN])
    save_file({n: t for n, t in state.items() if not n.startswith("blocks.3.")}, part)
    with pytest.raises(UserError, match=r"lacks blocks\.3\.\S+ and \d+ more"):
        opened(PLAIN, part)
    save_file(state | {"blocks.12.norm1.weight": torch.ones(192)}, part)
    with pytest.raises(UserError, match=r"also holds blocks\.12"):
        opened(PLAIN, part)
    with pytest.raises(UserError, match="does not hold the weights of encoder"):
        opened(PLAIN, files[REGISTERS])
    with pytest.raises(UserError, match=r"method\.encoder\.sha256 is abc"):
        opened(PLAIN, files[PLAIN], sha256="abc")


def test_architecture_needs_no_weights() -> None:
    """REPA's encoder, DINOv2-B at 224 pixels, takes 23 GMACs."""
    about = TimmEncoder.architecture("vit_base_patch14_dinov2.lvd142m", (3, 256, 256), 1000, (16, 16))
    assert about.dim == 768
    assert about.flops / 2e9 == pytest.approx(23.2, abs=0.1)
