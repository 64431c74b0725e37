"""Extractors of `eval.metrics`: loaded from the weights that the spec names, or trained on the training
split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness.data.dataset import Dataset, pictured, shapes_of, x_shape
from harness.data.open import images
from harness.errors import UserError
from harness.evaluation.inputs import network_inputs
from harness.evaluation.kept_features import samples_identity
from harness.evaluation.metric_names import located
from harness.files.cache import cache_dir
from metrics import MetricError
from metrics.extractors.base import Extractor
from metrics.extractors.find_weights import check_weights as check_file
from metrics.extractors.local import TrainingImages
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
        kind = "video" if name == "video:local" else "image"
        given = {"images": training_images(dataset, train, kind), "classes": dataset.classes}
    network, file, sha256 = located(name, weights)
    try:
        return load_extractor(
            network, weights=file, sha256=sha256, cache=cache_dir("extractors"), device=str(device), **given
        )
    except MetricError as error:
        raise UserError(f"eval.metrics, network '{name}': {error}") from error


def training_images(dataset: Dataset, train: np.ndarray, kind: str) -> TrainingImages:
    """Return the training samples as input of a network of `kind`, to be decoded only for training."""
    dataset = pictured(dataset)
    shapes = shapes_of(dataset)

    def read() -> tuple[np.ndarray, np.ndarray]:
        x, labels = images(dataset, train)
        return network_inputs(torch.from_numpy(x), shapes, kind).numpy(), labels

    one = torch.zeros(1, *x_shape(dataset), dtype=torch.uint8)
    content = json.dumps([samples_identity(dataset, train), kind])
    return TrainingImages(content, tuple(network_inputs(one, shapes, kind).shape[1:]), read)
