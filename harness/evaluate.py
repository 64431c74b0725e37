"""Evaluation: a network -> samples from fixed latents and labels -> features -> numbers. The same for every method and step."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from harness.cache import cache_dir
from harness.data.base import Dataset, images
from harness.errors import UserError
from harness.record import write_atomic
from harness.samples import draw_samples, image_grid, png
from harness.spec import EvalSpec
from metrics import MetricError
from metrics.features import Extractor, load_extractor
from metrics.frechet import Moments, frechet_distance


class Number(NamedTuple):
    """A metric as the record has it; no interval from a single evaluation."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Result:
    metrics: dict[str, Number]
    protocol: str
    grid: np.ndarray
    """uint8 (H, W) or (H, W, 3): the first samples, always from the same latents."""

    def save_grid(self, path: Path) -> None:
        write_atomic(path, png(self.grid))


class Evaluator:
    """Prepared once a run: extractors, reference statistics of the training split, latents and labels."""

    def __init__(self, spec: EvalSpec, dataset: Dataset, train: np.ndarray, device: torch.device) -> None:
        self.spec, self.device = spec, device
        self.shape, self.classes = dataset.shape, dataset.classes
        self.extractors = {name: open_extractor(name, dataset, train, device) for name in spec.metrics}
        self.reference = {name: reference(e, dataset, train) for name, e in self.extractors.items()}
        self.protocol = protocol_hash(spec, dataset, train, self.extractors)

    def __call__(self, model: nn.Module) -> Result:
        moments = {name: Moments() for name in self.extractors}
        first: list[Tensor] = []
        for samples in draw_samples(model, self.spec, self.shape, self.classes, self.device):
            if sum(map(len, first)) < self.spec.grid:
                first.append(samples)
            for name, extract in self.extractors.items():
                moments[name].add(extract(samples))
        metrics = {name: self._distance(name, fake) for name, fake in moments.items()}
        return Result(metrics, self.protocol, image_grid(torch.cat(first)[: self.spec.grid].numpy()))

    def _distance(self, name: str, fake: Moments) -> Number:
        return Number(float(frechet_distance(self.reference[name], fake)), None, None, self.spec.samples)


def open_extractor(metric: str, dataset: Dataset, train: np.ndarray, device: torch.device) -> Extractor:
    """The network behind a metric's name, `fd:<extractor>`; raises `UserError` for one that is not to be had."""
    kind, _, name = metric.partition(":")
    if kind != "fd" or not name:
        raise UserError(f"unknown metric '{metric}' in eval.metrics: expected fd:<extractor>, as fd:local")
    given: dict[str, Any] = {}
    if name == "local":
        pixels, labels = images(dataset, train)
        given = {"images": pixels, "labels": labels, "classes": dataset.classes}
    try:
        return load_extractor(name, cache=cache_dir("extractors"), device=str(device), **given)
    except MetricError as error:
        raise UserError(f"eval.metrics '{metric}': {error}") from error


def reference(extract: Extractor, dataset: Dataset, train: np.ndarray, batch: int = 500) -> Moments:
    """Feature statistics of the training split."""
    moments = Moments()
    for start in range(0, len(train), batch):
        pixels, _ = images(dataset, train[start : start + batch])
        moments.add(extract(torch.from_numpy(pixels)))
    return moments


def protocol_hash(
    spec: EvalSpec, dataset: Dataset, train: np.ndarray, extractors: dict[str, Extractor]
) -> str:
    """12 hex digits over everything that makes two values comparable: numbers with different hashes are not."""
    fields = spec.model_dump(exclude={"every", "batch_size", "grid"})
    weights = {name: extractor.sha256 for name, extractor in extractors.items()}
    real = {"data": dataset.fingerprint, "n_real": len(train), "shape": dataset.shape}
    text = json.dumps({**fields, **real, "weights": weights}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
