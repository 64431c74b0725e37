"""Image towers of open_clip: their joint image-text embeddings, and CLIP with the preprocessing of CMMD.

Names are `open_clip:<model>` or `open_clip:<model>.<weights>`, for example open_clip:ViT-B-16.openai. Images
are resized to the tower's size (bicubic with antialias) and normalised by the mean and deviation of its
training.

`clip-vit-l-336` is `ViT-L-14-336.openai` with the preprocessing of google-research/cmmd (io_util.py): the
centre square is resized, bicubic with antialias. The resizing in embedding.py then has no effect. CMMD itself
scales the embeddings to length 1.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from metrics.extractors.base import Extractor
from metrics.extractors.open_clip_recipe import VISUAL, Recipe, config_of, find_recipe
from metrics.extractors.resize import Pixels
from metrics.files.hashing import file_sha256
from metrics.files.hub import fill_part, weights_file
from metrics.files.weights import read_tensors
from metrics.value import MetricError

CMMD = "ViT-L-14-336.openai"
Tower = Any
"""An image tower of open_clip; its classes declare no types for the attributes they add to nn.Module."""


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
    """Load `open_clip:<model>`, under the name `name` if given.

    Weights are read from a safetensors file in open_clip's layout, or from the hub. `square` cuts images to
    their centre square before they are resized.
    """
    if not where:
        raise MetricError("extractor 'open_clip' needs a model, for example open_clip:ViT-B-16.openai")
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME

    name, recipe = name or f"open_clip:{where}", find_recipe(where)
    tower = create(recipe)
    file = weights_file(
        f"extractor '{name}'", weights, recipe.repository, HF_SAFE_WEIGHTS_NAME, download=download
    )
    found = file_sha256(file, expected=sha256)
    fill(tower, file, name)
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
    """Load `clip-vit-l-336` with weights from a safetensors file, or from the hub."""
    return load(CMMD, name="clip-vit-l-336", weights=where, square=True, **given)


def create(recipe: Recipe, vision: dict[str, Any] | None = None) -> Tower:
    """Return open_clip's image tower with initial weights, with its own settings or those of `vision`.

    No text tower is built. A file will replace the initial weights, so torch's generator is not advanced.
    """
    from open_clip.model import _build_vision_tower

    config = config_of(recipe.model)
    # Any: a dictionary, which open_clip itself converts to its CLIPVisionCfg.
    settings: Any = vision or config["vision_cfg"]
    with torch.random.fork_rng(devices=[]):
        return _build_vision_tower(config["embed_dim"], settings, quick_gelu=recipe.quick_gelu)


def fill(tower: Tower, file: Path, what: str, *, resample: bool = False) -> None:
    """Load an image tower from a file in open_clip's layout, with or without the text tower.

    `resample` resizes the position embedding to the tower's grid with open_clip's own function. Raises
    `MetricError` for another kind of file and for weights of another network.
    """
    from open_clip.model import resize_pos_embed

    tensors = read_tensors(file, VISUAL)
    if not tensors:
        raise MetricError(f"{file} holds no image tower of open_clip: no tensor's name begins with {VISUAL}")
    if resample:
        try:
            resize_pos_embed(tensors, SimpleNamespace(visual=tower))
        except (KeyError, RuntimeError) as error:
            last = str(error).strip().rpartition("\n")[2].strip()
            raise MetricError(f"{file} does not hold the weights of {what}: {last}") from error
    fill_part(tower, {key.removeprefix(VISUAL): x for key, x in tensors.items()}, file, what)


def _size(tower: Tower) -> tuple[int, int]:
    size = tower.image_size
    return (size, size) if isinstance(size, int) else tuple(size)
