"""The networks that `eval.metrics` names: opened, and checked to give what the metrics need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness.data.dataset import Dataset, shapes_of
from harness.data.open import images
from harness.errors import UserError
from harness.evaluation.features import parts_of
from harness.evaluation.inputs import seen
from harness.evaluation.metric_names import LEAST, TRUTHS, Yardstick, located, yardstick
from harness.files.cache import cache_dir
from metrics import MetricError
from metrics.extractors.base import Extractor
from metrics.extractors.registry import load_extractor
from metrics.suite import least, settings


def open_extractor(
    name: str, weights: Mapping[str, str], dataset: Dataset, train: np.ndarray, device: torch.device
) -> Extractor:
    """A network of `eval.metrics`; raises `UserError` for one that is not to be had."""
    given: dict[str, Any] = {}
    if name in ("local", "video:local"):
        x, labels = images(dataset, train)
        shown = seen(torch.from_numpy(x), shapes_of(dataset), "video" if name == "video:local" else "image")
        given = {"images": shown.numpy(), "labels": labels, "classes": dataset.classes}
    known, file, sha256 = located(name, weights)
    try:
        return load_extractor(
            known, weights=file, sha256=sha256, cache=cache_dir("extractors"), device=str(device), **given
        )
    except MetricError as error:
        raise UserError(f"eval.metrics, network '{name}': {error}") from error


def check_enough(name: str, samples: int, real: int) -> None:
    """Raise `UserError` for a metric of `eval.metrics` that so many samples, against so many real ones, do not serve."""
    value = "" if name in TRUTHS else yardstick(name).value
    subset = settings(value).get("subset_size", 0) if value else 0
    if min(samples, real) < subset:
        raise UserError(
            f"metric '{name}' draws subsets of {subset}, and there are {min(samples, real)} samples on a side: raise "
            "eval.samples, give more data, or leave it out"
        )
    fewest = least(value) if value else LEAST.get(name, 1)
    if samples < fewest:
        raise UserError(
            f"metric '{name}' has no value for fewer than {fewest} samples, and eval.samples = {samples}: raise it, or leave "
            "the metric out"
        )


def check_outputs(stick: Yardstick, extract: Extractor) -> None:
    """Raise `UserError` for a network that does not give what a metric is made of, or must not lend it its name."""
    parts = parts_of([stick.value])
    wanted = (parts.real | parts.fake) - {"rows", "features", *extract.beside}
    if wanted:
        raise UserError(
            f"metric '{stick.name}' needs {wanted.pop()}, which the network '{extract.name}' does not give; "
            f"it has features{''.join(f', {name}' for name in extract.beside)}"
        )
    if stick.name in ("fid", "fid_infinity", "sfid", "is", "is_shuffled") and extract.name != "inception":
        raise UserError(
            f"metric '{stick.name}' is called so only with the original weights, not with '{extract.name}'"
        )
