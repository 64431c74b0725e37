"""VideoMAE features of clips of 16 frames at 224x224: the network of content-debiased FVD.

Content-debiased FVD (songweige/content-debiased-fvd) takes VideoMAE v2's ViT-g, fine-tuned on
Something-Something v2: bytes / 255 (no mean, no deviation), bilinear without antialias, then the normalised
mean of all tokens, 1,408 numbers. The weights are the authors' file (`vit_g_hybrid_pt_1200e_ssv2_ft.pth`, or
its tensors as safetensors), or a folder in transformers' layout of `VideoMAEForVideoClassification`, whose
pixels are prepared in the same way.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.extractors.video.base import VideoExtractor
from metrics.files.hashing import file_sha256
from metrics.files.media import package
from metrics.files.weights import fill, pretrained, read_tensors
from metrics.value import MetricError

SSV2 = "vit_g_hybrid_pt_1200e_ssv2_ft.pth"
SHA256 = "5a210a92f035dff30c53b46157b612e7a1a5d3c99700e1b2d71da5c399ca7e70"
"""Of that file."""
SIZE, FRAMES, CHUNK = 224, 16, 4
NORM = 1e-6
"""The authors' epsilon, in every norm."""
RENAMED = {
    r"patch_embed\.proj\.": "videomae.embeddings.patch_embeddings.projection.",
    r"blocks\.(\d+)\.norm1\.": r"videomae.encoder.layer.\1.layernorm_before.",
    r"blocks\.(\d+)\.norm2\.": r"videomae.encoder.layer.\1.layernorm_after.",
    r"blocks\.(\d+)\.attn\.proj\.": r"videomae.encoder.layer.\1.attention.output.dense.",
    r"blocks\.(\d+)\.attn\.q_bias": r"videomae.encoder.layer.\1.attention.attention.query.bias",
    r"blocks\.(\d+)\.attn\.v_bias": r"videomae.encoder.layer.\1.attention.attention.value.bias",
    r"blocks\.(\d+)\.mlp\.fc1\.": r"videomae.encoder.layer.\1.intermediate.dense.",
    r"blocks\.(\d+)\.mlp\.fc2\.": r"videomae.encoder.layer.\1.output.dense.",
    r"head\.": "classifier.",
}
QKV = re.compile(r"blocks\.(\d+)\.attn\.qkv\.weight")


def load(where: str | Path | None, *, device: torch.device, sha256: str = "", **_: Any) -> VideoExtractor:
    """The network of a folder in transformers' layout, or of the authors' file. Nothing is downloaded."""
    if not where:
        raise MetricError(f"extractor 'videomae' needs its weights: name {SSV2} or a folder of transformers'")
    path = Path(where)
    package("transformers", "video")
    file = path / "model.safetensors" if path.is_dir() else path
    found = file_sha256(file, expected=sha256)
    model = _from_folder(path) if path.is_dir() else _from_authors(path)
    model.to(device).requires_grad_(False).eval()

    def network(clips: Tensor) -> Tensor:
        return torch.cat([features(model, part) for part in clips.split(CHUNK)])

    return VideoExtractor(
        name="videomae" if found == SHA256 else f"videomae@{found[:8]}",
        dim=model.config.hidden_size,
        sha256=found,
        preprocessing=f"{model.config.num_frames} frames, bytes / 255, {SIZE}x{SIZE} bilinear without antialias",
        channels=3,
        device=device,
        network=network,
        frames=model.config.num_frames,
    )


def features(model: Any, clips: Tensor) -> Tensor:
    """uint8 (B, T, 3, H, W) -> (B, width): the normalised mean of all tokens, or the first one where the
    model has that."""
    frames = F.interpolate(
        clips.flatten(0, 1).float() / 255, (SIZE, SIZE), mode="bilinear", align_corners=False
    )
    tokens = model.videomae(frames.unflatten(0, clips.shape[:2])).last_hidden_state
    return tokens[:, 0] if model.fc_norm is None else model.fc_norm(tokens.mean(1))


def _from_folder(folder: Path) -> Any:
    model = pretrained("VideoMAEForVideoClassification", folder, extra="video", used="videomae|fc_norm")
    if model.config.image_size != SIZE:
        raise MetricError(f"{folder} takes frames of {model.config.image_size}; expected {SIZE}")
    return model


def _from_authors(file: Path) -> Any:
    """transformers' network around the authors' tensors; its sizes are read off them."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    given = read_tensors(file)
    try:
        patches, head = given["patch_embed.proj.weight"], given["head.weight"]
        inner = given["blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise MetricError(f"{file} does not hold the weights of VideoMAE v2: no {error}") from error
    width = patches.shape[0]
    config = VideoMAEConfig(
        image_size=SIZE,
        num_frames=FRAMES,
        patch_size=patches.shape[-1],
        tubelet_size=patches.shape[2],
        hidden_size=width,
        num_hidden_layers=len([name for name in given if QKV.fullmatch(name)]),
        # L, H and g have 16 heads, S and B one for 64 channels.
        num_attention_heads=16 if width >= 1024 else width // 64,
        intermediate_size=inner,
        layer_norm_eps=NORM,
    )
    config.num_labels = len(head)
    model = VideoMAEForVideoClassification(config)
    model.fc_norm = nn.LayerNorm(width, eps=NORM)
    fill(model, _renamed(given), file, "VideoMAE v2")
    return model


def _renamed(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names and joined matrices -> transformers'."""
    found: dict[str, Tensor] = {}
    for name, x in given.items():
        if block := QKV.fullmatch(name):
            where = f"videomae.encoder.layer.{block[1]}.attention.attention"
            found |= {
                f"{where}.{part}.weight": y
                for part, y in zip(("query", "key", "value"), x.chunk(3), strict=True)
            }
            continue
        for pattern, new in RENAMED.items():
            name = re.sub(f"^{pattern}", new, name)
        found[name] = x
    return found
