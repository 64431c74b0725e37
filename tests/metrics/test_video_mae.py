"""VideoMAE against the authors' forward pass in float64, from their file and from transformers' folder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics import MetricError
from metrics.extractors.video import videomae as video_mae

CPU = torch.device("cpu")


def clips_(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


WIDTH, DEPTH, INNER, PATCH, LABELS = 128, 2, 96, 56, 5


def authors() -> dict[str, Tensor]:
    """Return random weights in the layout of the authors' checkpoint of VideoMAE v2."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.05 * torch.randn(shape, generator=random)

    state = {"patch_embed.proj.weight": draw(WIDTH, 3, 2, PATCH, PATCH), "patch_embed.proj.bias": draw(WIDTH)}
    for n in range(DEPTH):
        state |= {
            f"blocks.{n}.norm1.weight": 1 + draw(WIDTH),
            f"blocks.{n}.norm1.bias": draw(WIDTH),
            f"blocks.{n}.attn.q_bias": draw(WIDTH),
            f"blocks.{n}.attn.v_bias": draw(WIDTH),
            f"blocks.{n}.attn.qkv.weight": draw(3 * WIDTH, WIDTH),
            f"blocks.{n}.attn.proj.weight": draw(WIDTH, WIDTH),
            f"blocks.{n}.attn.proj.bias": draw(WIDTH),
            f"blocks.{n}.norm2.weight": 1 + draw(WIDTH),
            f"blocks.{n}.norm2.bias": draw(WIDTH),
            f"blocks.{n}.mlp.fc1.weight": draw(INNER, WIDTH),
            f"blocks.{n}.mlp.fc1.bias": draw(INNER),
            f"blocks.{n}.mlp.fc2.weight": draw(WIDTH, INNER),
            f"blocks.{n}.mlp.fc2.bias": draw(WIDTH),
        }
    state |= {"fc_norm.weight": 1 + draw(WIDTH), "fc_norm.bias": draw(WIDTH)}
    return state | {"head.weight": draw(LABELS, WIDTH), "head.bias": draw(LABELS)}


def positions(count: int) -> Tensor:
    """Return position embeddings: sines in even columns, cosines in odd ones."""
    angles = np.arange(count)[:, None] / 10_000 ** (2 * (np.arange(WIDTH) // 2) / WIDTH)
    return torch.from_numpy(np.where(np.arange(WIDTH) % 2, np.cos(angles), np.sin(angles)))


def by_hand(state: dict[str, Tensor], clips: Tensor) -> Tensor:
    """Return `forward_features` of the authors' network, in float64, with cdfvd's preprocessing."""
    w = {name: value.double() for name, value in state.items()}
    frames = F.interpolate(
        clips.flatten(0, 1).double() / 255, (224, 224), mode="bilinear", align_corners=False
    )
    video = frames.unflatten(0, clips.shape[:2]).transpose(1, 2)
    x = F.conv3d(video, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=(2, PATCH, PATCH))
    x = x.flatten(2).transpose(1, 2)
    x = x + positions(x.shape[1])
    for n in range(DEPTH):
        b = {name.removeprefix(f"blocks.{n}."): y for name, y in w.items() if name.startswith(f"blocks.{n}.")}
        h = F.layer_norm(x, (WIDTH,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        bias = torch.cat([b["attn.q_bias"], torch.zeros(WIDTH), b["attn.v_bias"]])
        qkv = (h @ b["attn.qkv.weight"].T + bias).unflatten(2, (3, WIDTH // 64, 64)).permute(2, 0, 3, 1, 4)
        a = (qkv[0] @ qkv[1].transpose(2, 3) / 8).softmax(-1) @ qkv[2]
        x = x + a.transpose(1, 2).flatten(2) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        h = F.layer_norm(x, (WIDTH,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        x = (
            x
            + F.gelu(h @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]) @ b["mlp.fc2.weight"].T
            + b["mlp.fc2.bias"]
        )
    return F.layer_norm(x.mean(1), (WIDTH,), w["fc_norm.weight"], w["fc_norm.bias"], 1e-6)


@pytest.fixture(scope="module")
def mae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same weights in transformers' layout."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("mae")
    safetensors.torch.save_file(authors(), folder / "authors.safetensors")
    video_mae._from_authors(folder / "authors.safetensors").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_videomae_equals_the_authors_network_when_read_from_their_file(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("transformers")
    state, file = authors(), tmp_path / f"mae.{suffix}"
    if suffix == "pth":
        torch.save({"module": state}, file)
    else:
        safetensors.torch.save_file(state, file)
    extract, clips = video_mae.load(file, device=CPU), clips_(2, 16, 3, 40, 30)
    np.testing.assert_allclose(extract(clips), by_hand(state, clips), atol=2e-5)
    assert (extract.dim, extract.frames, extract.name) == (WIDTH, 16, f"videomae@{extract.sha256[:8]}")
    one, two = extract(clips[:1]), extract(clips[1:])
    torch.testing.assert_close(extract(clips), torch.cat([one, two]), atol=1e-5, rtol=1e-5)


def test_videomae_equals_the_authors_network_when_read_from_a_folder(mae_folder: Path) -> None:
    extract, clips = video_mae.load(mae_folder, device=CPU), clips_(1, 16, 3, 30, 40, seed=1)
    np.testing.assert_allclose(
        extract(clips), by_hand(authors(), clips), atol=1e-4
    )  # its last epsilon is 1e-5


def test_videomae_rejects_other_weights(mae_folder: Path, tmp_path: Path) -> None:
    state = authors()
    for lost, says in (
        ("head.weight", "no 'head.weight'"),
        ("blocks.1.mlp.fc2.bias", "the weights of VideoMAE v2"),
        ("blocks.1.attn.qkv.weight", "the weights of VideoMAE v2"),
    ):
        safetensors.torch.save_file(
            {k: x for k, x in state.items() if k != lost}, tmp_path / "mae.safetensors"
        )
        with pytest.raises(MetricError, match=rf"mae\.safetensors does not hold .*{re.escape(says)}"):
            video_mae.load(tmp_path / "mae.safetensors", device=CPU)
    with pytest.raises(
        MetricError,
        match=r"'videomae' needs its weights; write videomae:<path of vit_g_hybrid_pt_1200e_ssv2_ft\.pth",
    ):
        video_mae.load(None, device=CPU)
    with pytest.raises(MetricError, match=r"cannot read weights .*model\.safetensors"):
        video_mae.load(tmp_path, device=CPU)
    (tmp_path / "config.json").write_text((mae_folder / "config.json").read_text())
    held = safetensors.torch.load_file(mae_folder / "model.safetensors")
    del held["fc_norm.bias"]
    safetensors.torch.save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        MetricError, match=r"lacks 1 weights of .*VideoMAEForVideoClassification; the first is fc_norm\.bias"
    ):
        video_mae.load(tmp_path, device=CPU)
