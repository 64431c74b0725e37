"""VideoMAE, the network of content-debiased FVD, over clips of 16 frames at 224x224.

Content-debiased FVD (songweige/content-debiased-fvd) uses VideoMAE v2's ViT-g, fine-tuned on
Something-Something v2. Pixels are bytes / 255, without mean and deviation, resized bilinearly without
antialias. The features are the normalised mean of all tokens, 1,408 numbers.

The weights are the authors' file (`vit_g_hybrid_pt_1200e_ssv2_ft.pth`, or its tensors as safetensors), or a
folder of `VideoMAEForVideoClassification` in transformers' layout. Pixels are prepared in the same way for
both.
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
"""Checksum of the authors' file."""
SIZE, FRAMES, CHUNK = 224, 16, 4
NORM = 1e-6
"""The authors' epsilon in every norm."""
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
"""Patterns of the authors' tensor names, with the corresponding names in transformers."""
QKV = re.compile(r"blocks\.(\d+)\.attn\.qkv\.weight")


def load(where: str | Path | None, *, device: torch.device, sha256: str = "", **_: Any) -> VideoExtractor:
    """Load VideoMAE from a folder in transformers' layout, or from the authors' file, without a download."""
    if not where:
        raise MetricError(
            f"extractor 'videomae' needs its weights; write videomae:<path of {SSV2} or of a folder in "
            "transformers' layout>"
        )
    path = Path(where)
    package("transformers", "video")
    file = path / "model.safetensors" if path.is_dir() else path
    checksum = file_sha256(file, expected=sha256)
    model = _from_folder(path) if path.is_dir() else _from_authors(path)
    model.to(device).requires_grad_(False).eval()

    def network(clips: Tensor) -> Tensor:
        return torch.cat([features(model, part) for part in clips.split(CHUNK)])

    return VideoExtractor(
        name="videomae" if checksum == SHA256 else f"videomae@{checksum[:8]}",
        dim=model.config.hidden_size,
        sha256=checksum,
        preprocessing=(
            f"{model.config.num_frames} frames, bytes / 255, {SIZE}x{SIZE} bilinear without antialias"
        ),
        channels=3,
        device=device,
        network=network,
        frames=model.config.num_frames,
    )


def features(model: Any, clips: Tensor) -> Tensor:
    """Return the features (B, width) of clips uint8 (B, T, 3, H, W).

    They are the normalised mean of all tokens, or the first token for a model without that norm.
    """
    frames = F.interpolate(
        clips.flatten(0, 1).float() / 255, (SIZE, SIZE), mode="bilinear", align_corners=False
    )
    tokens = model.videomae(frames.unflatten(0, clips.shape[:2])).last_hidden_state
    return tokens[:, 0] if model.fc_norm is None else model.fc_norm(tokens.mean(1))


def _from_folder(folder: Path) -> Any:
    model = pretrained("VideoMAEForVideoClassification", folder, extra="video", used="videomae|fc_norm")
    if model.config.image_size != SIZE:
        raise MetricError(
            f"{folder} takes frames of {model.config.image_size} pixels; expected {SIZE} pixels"
        )
    return model


def _from_authors(file: Path) -> Any:
    """Return transformers' network with the authors' tensors, whose shapes determine its sizes."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    tensors = read_tensors(file)
    try:
        patches, head = tensors["patch_embed.proj.weight"], tensors["head.weight"]
        inner = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise MetricError(f"{file} does not hold the weights of VideoMAE v2: no {error}") from error
    width = patches.shape[0]
    config = VideoMAEConfig(
        image_size=SIZE,
        num_frames=FRAMES,
        patch_size=patches.shape[-1],
        tubelet_size=patches.shape[2],
        hidden_size=width,
        num_hidden_layers=len([name for name in tensors if QKV.fullmatch(name)]),
        # L, H and g have 16 heads; S and B have one per 64 channels.
        num_attention_heads=16 if width >= 1024 else width // 64,
        intermediate_size=inner,
        layer_norm_eps=NORM,
    )
    config.num_labels = len(head)
    model = VideoMAEForVideoClassification(config)
    model.fc_norm = nn.LayerNorm(width, eps=NORM)
    fill(model, _renamed(tensors), file, "VideoMAE v2")
    return model


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' tensors by transformers' names, with the joint QKV matrices split in three."""
    renamed: dict[str, Tensor] = {}
    for name, x in tensors.items():
        if block := QKV.fullmatch(name):
            prefix = f"videomae.encoder.layer.{block[1]}.attention.attention"
            renamed |= {
                f"{prefix}.{part}.weight": y
                for part, y in zip(("query", "key", "value"), x.chunk(3), strict=True)
            }
            continue
        for pattern, new in RENAMED.items():
            name = re.sub(f"^{pattern}", new, name)
        renamed[name] = x
    return renamed
