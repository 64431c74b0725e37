"""Image towers of open_clip: the embedding that is compared with texts, and CLIP as CMMD takes it.

`open_clip:<model>` or `open_clip:<model>.<weights>`, as open_clip:ViT-B-16.openai, at the tower's size, bicubic with
antialias, with the mean and deviation it was trained with.

`clip-vit-l-336` is `ViT-L-14-336.openai` with the pixels of google-research/cmmd (embedding.py): bicubic in floating point
without antialias. The distance brings its embeddings to length 1.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from metrics.extractor import Extractor
from metrics.files import file_sha256
from metrics.hub import fill_part, weights_file
from metrics.pixels import Pixels
from metrics.tensors import read_tensors
from metrics.value import MetricError

VISUAL = "visual."
"""What the names of the image tower's tensors begin with."""
CMMD = "ViT-L-14-336.openai"


class Recipe(NamedTuple):
    """How a tower was trained, as far as its features depend on it."""

    model: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    quick_gelu: bool
    repository: str
    """On the hub; empty where a model's weights are not one safetensors file, or not there."""


def load(
    where: str | None,
    *,
    device: torch.device,
    name: str = "",
    weights: str | Path | None = None,
    sha256: str = "",
    download: bool = False,
    antialias: bool = True,
    **_: Any,
) -> Extractor:
    """`open_clip:<model>`, also called `name`; weights in open_clip's layout from a safetensors file, or from the hub."""
    if not where:
        raise MetricError("extractor 'open_clip' needs a model, as open_clip:ViT-B-16.openai")
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME

    name, recipe = name or f"open_clip:{where}", find_recipe(where)
    tower = _tower(recipe)
    file = weights_file(name, weights, recipe.repository, HF_SAFE_WEIGHTS_NAME, download=download)
    found = file_sha256(file, expected=sha256)
    _fill(tower, file, name)
    tower.to(device).requires_grad_(False).eval()
    pixels = Pixels(_size(tower), recipe.mean, recipe.std, antialias=antialias)
    return Extractor(
        name=name,
        dim=_config(recipe.model)["embed_dim"],
        sha256=found,
        preprocessing=pixels.words,
        channels=3,
        device=device,
        network=lambda images: tower(pixels.prepare(images)),
    )


def load_cmmd(where: str | Path | None, *, weights: Any = None, **given: Any) -> Extractor:
    """`clip-vit-l-336`; weights from a safetensors file, or from the hub."""
    return load(CMMD, name="clip-vit-l-336", weights=where, antialias=False, **given)


def find_recipe(where: str) -> Recipe:
    """The recipe of `model` or `model.weights`.

    Raises `MetricError` for unknown names, and for weights that are not named where a model's differ in pixels or
    activation: features would be wrong without a word.
    """
    import open_clip

    model, _, tag = where.partition(".")
    if model not in open_clip.list_models():
        near = difflib.get_close_matches(model, open_clip.list_models(), n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise MetricError(f"open_clip has no model '{model}'.{hint} See: open_clip.list_models()")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag and tag not in tags:
        raise MetricError(
            f"open_clip's '{model}' has no weights '{tag}' (known: {', '.join(tags) or 'none'}); for weights of "
            f"your own it is open_clip:{model}"
        )
    found = {_recipe(model, one) for one in ([tag] if tag else tags)} or {_recipe(model, "")}
    if len({one._replace(repository="") for one in found}) > 1:
        raise MetricError(
            f"open_clip's '{model}' has weights of different training ({', '.join(tags)}); name the one, as "
            f"open_clip:{model}.{tags[0]}"
        )
    return found.pop() if len(found) == 1 else found.pop()._replace(repository="")


def _recipe(model: str, tag: str) -> Recipe:
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    config = open_clip.get_pretrained_cfg(model, tag)
    mean, std = config.get("mean", OPENAI_DATASET_MEAN), config.get("std", OPENAI_DATASET_STD)
    # "organisation/repository/" is a repository, "organisation/repository/file" one file in it that is no safetensors
    repository, _, file = config.get("hf_hub", "").rpartition("/")
    quick_gelu = config.get("quick_gelu", False) or _config(model).get("quick_gelu", False)
    return Recipe(model, tuple(mean), tuple(std), quick_gelu, "" if file else repository)


def _config(model: str) -> dict[str, Any]:
    import open_clip

    return open_clip.get_model_config(model)


def _tower(recipe: Recipe) -> nn.Module:
    """The image tower alone: a whole CLIP has a text tower too."""
    from open_clip.model import _build_vision_tower

    config = _config(recipe.model)
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
