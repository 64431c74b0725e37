"""Image towers of open_clip: the embedding that is compared with texts, and CLIP as CMMD takes it.

`open_clip:<model>` or `open_clip:<model>.<weights>`, as open_clip:ViT-B-16.openai, at the tower's size, bicubic with
antialias, with the mean and deviation it was trained with.

`clip-vit-l-336` is `ViT-L-14-336.openai` with the pixels of google-research/cmmd (io_util.py): the centre square, bicubic with
antialias as well; what embedding.py would resize has that size by then. The distance brings its embeddings to length 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from metrics.extractors.base import Extractor
from metrics.extractors.open_clip_recipe import VISUAL, Recipe, config_of, find_recipe
from metrics.extractors.resize import Pixels
from metrics.files.hashing import file_sha256
from metrics.files.hub import fill_part, weights_file
from metrics.files.weights import read_tensors
from metrics.value import MetricError

CMMD = "ViT-L-14-336.openai"


def load(
    where: str | None,
    *,
    device: torch.device,
    name: str = "",
    weights: str | Path | None = None,
    sha256: str = "",
    download: bool = False,
    square: bool = False,
    **_: Any,
) -> Extractor:
    """`open_clip:<model>`, also called `name`; weights in open_clip's layout from a safetensors file, or from the hub.

    `square` cuts images to their centre square before they are resized.
    """
    if not where:
        raise MetricError("extractor 'open_clip' needs a model, as open_clip:ViT-B-16.openai")
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME

    name, recipe = name or f"open_clip:{where}", find_recipe(where)
    tower = _tower(recipe)
    file = weights_file(name, weights, recipe.repository, HF_SAFE_WEIGHTS_NAME, download=download)
    found = file_sha256(file, expected=sha256)
    _fill(tower, file, name)
    tower.to(device).requires_grad_(False).eval()
    pixels = Pixels(_size(tower), recipe.mean, recipe.std, square=square)
    return Extractor(
        name=name,
        dim=config_of(recipe.model)["embed_dim"],
        sha256=found,
        preprocessing=pixels.words,
        channels=3,
        device=device,
        network=lambda images: tower(pixels.prepare(images)),
    )


def load_cmmd(where: str | Path | None, *, weights: Any = None, **given: Any) -> Extractor:
    """`clip-vit-l-336`; weights from a safetensors file, or from the hub."""
    return load(CMMD, name="clip-vit-l-336", weights=where, square=True, **given)


def _tower(recipe: Recipe) -> nn.Module:
    """The image tower alone: a whole CLIP has a text tower too."""
    from open_clip.model import _build_vision_tower

    config = config_of(recipe.model)
    with torch.random.fork_rng(devices=[]):  # the file replaces its initial weights
        return _build_vision_tower(config["embed_dim"], config["vision_cfg"], quick_gelu=recipe.quick_gelu)


def _size(tower: nn.Module) -> tuple[int, int]:
    size = tower.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def _fill(tower: nn.Module, file: Path, name: str) -> None:
    tensors = read_tensors(file)
    visual = {key.removeprefix(VISUAL): x for key, x in tensors.items() if key.startswith(VISUAL)}
    if not visual:
        raise MetricError(
            f"{file} holds no image tower of open_clip: none of its tensors is called {VISUAL}*"
        )
    fill_part(tower, visual, file, name)
