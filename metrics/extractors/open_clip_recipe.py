"""How open_clip's image towers were trained, by the name of a model and of its weights, as
ViT-B-16.openai."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from metrics.value import MetricError

VISUAL = "visual."
"""What the names of the image tower's tensors begin with."""


class Recipe(NamedTuple):
    """How a tower was trained, as far as its features depend on it."""

    model: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    quick_gelu: bool
    repository: str
    """On the hub; empty where a model's weights are not one safetensors file, or not there."""


def find_recipe(where: str) -> Recipe:
    """The recipe of `model` or `model.weights`.

    Raises `MetricError` for unknown names, and for weights that are not named where a model's differ in
    pixels or activation: features would be wrong without a word.
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
    # "organisation/repository/" is a repository, "organisation/repository/file" one file in it that is no
    # safetensors
    repository, _, file = config.get("hf_hub", "").rpartition("/")
    quick_gelu = config.get("quick_gelu", False) or config_of(model).get("quick_gelu", False)
    return Recipe(model, tuple(mean), tuple(std), quick_gelu, "" if file else repository)


def config_of(model: str) -> dict[str, Any]:
    """Return the settings of a model that open_clip has."""
    import open_clip

    config = open_clip.get_model_config(model)
    assert config is not None, model
    return config
