"""Extractors of `eval.metrics`: loaded from the weights that the spec names, or trained on the training
split.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness.data.dataset import Dataset, shapes_of
from harness.data.open import images
from harness.errors import UserError
from harness.evaluation.inputs import network_inputs
from harness.evaluation.metric_names import located
from harness.files.cache import cache_dir
from metrics import MetricError
from metrics.extractors.base import Extractor
from metrics.extractors.find_weights import check_weights as check_file
from metrics.extractors.registry import load_extractor


def check_weights(name: str, weights: Mapping[str, str]) -> None:
    """Raise `UserError` if the weights of a network of `eval.metrics` are not on this machine."""
    network, file, _ = located(name, weights)
    try:
        check_file(network, weights=file)
    except MetricError as error:
        raise UserError(str(error)) from error


def open_extractor(
    name: str, weights: Mapping[str, str], dataset: Dataset, train: np.ndarray, device: torch.device
) -> Extractor:
    """Open a network of `eval.metrics`; raises `UserError` if it is not available."""
    # Any: keyword arguments of load_extractor
    given: dict[str, Any] = {}
    if name in ("local", "video:local"):
        x, labels = images(dataset, train)
        kind = "video" if name == "video:local" else "image"
        shown = network_inputs(torch.from_numpy(x), shapes_of(dataset), kind)
        given = {"images": shown.numpy(), "labels": labels, "classes": dataset.classes}
    network, file, sha256 = located(name, weights)
    try:
        return load_extractor(
            network, weights=file, sha256=sha256, cache=cache_dir("extractors"), device=str(device), **given
        )
    except MetricError as error:
        raise UserError(f"eval.metrics, network '{name}': {error}") from error
