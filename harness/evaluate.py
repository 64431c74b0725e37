"""Evaluation: a network -> samples from fixed latents and labels -> features -> numbers. The same for every method and step."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from metrics.features import Extractor, load_extractor
from metrics.frechet import Moments, frechet_distance
from torch import Tensor, nn

from harness.cache import cache_dir
from harness.data.base import Dataset, images
from harness.draws import Streams
from harness.errors import UserError
from harness.record import write_atomic
from harness.sampler import SAMPLERS, velocity_field
from harness.spec import EvalSpec
from metrics import MetricError


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


@torch.no_grad()
def draw_samples(
    model: nn.Module, spec: EvalSpec, shape: tuple[int, int, int], classes: int, device: torch.device
) -> Iterator[Tensor]:
    """Samples as uint8 (B, C, H, W) on the CPU, in batches; sample i depends on `spec.seed` and i alone."""
    streams = Streams(spec.seed)
    for start in range(0, spec.samples, spec.batch_size):
        index = np.arange(start, min(start + spec.batch_size, spec.samples))
        y = sample_labels(spec, streams, index, classes).to(device)
        v = velocity_field(
            model, y, null=classes, scale=spec.guidance, low=spec.guidance_low, high=spec.guidance_high
        )
        z = streams.normal("eval_noise", index, shape).to(device)
        noise = lambda i, x, index=index: streams.normal(f"sde_noise/{i}", index, shape).to(x)  # noqa: E731
        x = SAMPLERS[spec.sampler](v, z, spec.sampler_steps, noise=noise)
        yield ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def sample_labels(spec: EvalSpec, streams: Streams, index: np.ndarray, classes: int) -> Tensor:
    """Balanced: i mod classes. Random: uniform, as most published numbers have it (balanced lowers FID by about 0.1)."""
    if spec.labels == "balanced":
        return torch.from_numpy(index % classes)
    return streams.integers("eval_label", index, classes)


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


def image_grid(pixels: np.ndarray, columns: int = 10, pad: int = 1) -> np.ndarray:
    """Images uint8 (n, C, H, W) -> one uint8 picture, (H', W') for grey and (H', W', 3) for colour."""
    n, channels, height, width = pixels.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    canvas = np.full(
        (rows * (height + pad) - pad, columns * (width + pad) - pad, channels), 255, dtype=np.uint8
    )
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (height + pad), (i % columns) * (width + pad)
        canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return canvas[:, :, 0] if channels == 1 else canvas


def png(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    return buffer.getvalue()
