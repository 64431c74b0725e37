"""Training settings of open_clip's image towers, by model and weights, for example ViT-B-16.openai."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from metrics.value import MetricError

VISUAL = "visual."
"""Prefix of the names of the image tower's tensors."""


class Recipe(NamedTuple):
    """The training settings of a tower on which its features depend."""

    model: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    quick_gelu: bool
    repository: str
    """Repository on the hub; empty if it has no single safetensors file of the model's weights."""


def find_recipe(where: str) -> Recipe:
    """Return the recipe of `model` or `model.weights`.

    Raises `MetricError` for unknown names. Weights must be named if a model's weights differ in preprocessing
    or activation, since the wrong choice would silently give wrong features.
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
            f"open_clip's '{model}' has no weights '{tag}' (known: {', '.join(tags) or 'none'}); "
            f"for your own weights write open_clip:{model}"
        )
    recipes = {_recipe(model, known) for known in ([tag] if tag else tags)} or {_recipe(model, "")}
    if len({recipe._replace(repository="") for recipe in recipes}) > 1:
        raise MetricError(
            f"open_clip's '{model}' has weights of different training ({', '.join(tags)}); name one of them, "
            f"for example open_clip:{model}.{tags[0]}"
        )
    return recipes.pop() if len(recipes) == 1 else recipes.pop()._replace(repository="")


def _recipe(model: str, tag: str) -> Recipe:
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    config = open_clip.get_pretrained_cfg(model, tag)
    mean, std = config.get("mean", OPENAI_DATASET_MEAN), config.get("std", OPENAI_DATASET_STD)
    # "organisation/repository/" is a repository; "organisation/repository/file" is one file in it that is not
    # a safetensors file.
    repository, _, file = config.get("hf_hub", "").rpartition("/")
    quick_gelu = config.get("quick_gelu", False) or config_of(model).get("quick_gelu", False)
    return Recipe(model, tuple(mean), tuple(std), quick_gelu, "" if file else repository)


def config_of(model: str) -> dict[str, Any]:
    """Return open_clip's settings of a known model."""
    import open_clip

    config = open_clip.get_model_config(model)
    assert config is not None, model
    return config
