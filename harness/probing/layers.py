"""Layer probe: a network's layers and a frozen encoder, measured on features of the same images.

The network gets images at one time of the path, with noise from a separate stream and without labels.
Accuracy and agreement use features averaged over tokens; spatial measures use the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.backbone.condition import Condition, Text
from harness.backbone.config import BackboneConfig
from harness.backbone.network import Backbone
from harness.backbone.times import Times
from harness.data.dataset import Capabilities, Dataset
from harness.data.open import Split, images
from harness.encoders.base import Encoder, view_of
from harness.errors import UserError
from harness.files.progress import tracked
from harness.flow.path import interpolate
from harness.probing.linear_probe import (
    PROBES,
    Labelled,
    linear_cka,
    local_distant,
    over_images,
    spatial_decay,
)
from harness.runtime.random_streams import Streams
from metrics import MetricError, Value, cknna

BATCH = 100
NEIGHBOURS = 10
"""k of CKNNA, as in REPA."""
Tokens = Callable[[np.ndarray, Tensor], dict[str, Tensor]]
"""Data set indices (B,), images (B, C, H, W) in [-1, 1] -> tokens (B, T, d) by name."""


class Row(NamedTuple):
    """The measures of one representation; those that need labels or an encoder are None without them."""

    name: str
    accuracy: Value | None
    """Accuracy of a linear classifier on held-out images."""
    cknna: Value | None
    """CKNNA with the encoder on held-out images."""
    cka: Value | None
    """Linear CKA with the encoder on held-out images."""
    local_distant: Value
    spatial_decay: Value


class LayerFeatures(NamedTuple):
    """One layer's features of N images. The spatial measures are empty if they were not requested."""

    pooled: Tensor
    """(N, d): the mean of each image's tokens."""
    local_distant: Tensor
    """(N,)."""
    spatial_decay: Tensor
    """(N,)."""


class Measured(NamedTuple):
    """The measures of all representations."""

    rows: list[Row]
    train: int
    """Number of training images."""
    held_out: int
    """Number of held-out images."""


def probe(
    model: Backbone,
    dataset: Dataset,
    sides: Split,
    encoder: Encoder | None,
    *,
    time: float,
    samples: int,
    device: torch.device,
    classifier: str = "ridge",
    null: Text | None = None,
) -> Measured:
    """Measure the encoder, if given, and every layer on at most `samples` images of each side of the split.

    `classifier` is one of `linear_probe.PROBES`. `null` is the empty caption, for a network that is
    conditioned on text. Images and their noise are the same for all networks on the
    same data. Raises `UserError` if no images are held out and for features that cannot be measured.
    """
    if model.config.features:
        raise UserError(
            "the input of the network has an encoder's features next to each sample, so its layers cannot be "
            "compared; probe a run that does not generate features"
        )
    if not len(sides.held_out):
        raise UserError(
            "data.held_out = 0 leaves no image to measure a probe on; probe a run that holds out some images"
        )
    sources = [_of_inputs(layers(model, time, device, null), dataset)]
    if encoder is not None:
        sources.insert(0, _of_encoder(encoder, dataset))
    train, held_out = (
        side[Streams(0).permutation(f"probe/{name}", 0, len(side))[:samples]]
        for name, side in zip(("train", "held_out"), sides, strict=True)
    )
    features = [
        gather(sources, dataset, train, None, device),
        gather(sources, dataset, held_out, model.config.grid, device),
    ]
    labels = [torch.from_numpy(images(dataset, index)[1]) for index in (train, held_out)]
    measured = features[1]
    target = measured[encoder.name].pooled if encoder is not None else None
    rows = []
    for name in tracked(list(measured), "classifiers"):
        with measuring(name):
            accuracy = None
            if dataset.classes > 1:
                sets = (Labelled(part[name].pooled, y) for part, y in zip(features, labels, strict=True))
                accuracy = PROBES[classifier](*sets, dataset.classes)
            rows.append(_row(name, measured[name], accuracy, target))
    return Measured(rows, len(train), len(held_out))


def layers(model: Backbone, time: float, device: torch.device, null: Text | None = None) -> Tokens:
    """Return a function to the tokens of every block (1-based) at a time of the path (0 is clean).

    The label is the null label, and the text is `null`. A network with an extra token (REG) is run without
    it, because that token would pass the encoder's features to the layers.
    """
    depth = len(model.blocks)

    @torch.no_grad()
    def tokens(index: np.ndarray, x0: Tensor) -> dict[str, Tensor]:
        times = Times.per_sample(torch.full((len(index),), time, device=device))
        x = noised(index, x0, times, model.config)
        y = _null_condition(null, model.config, len(index), device)
        hidden = model(x, times, y, taps=range(1, depth + 1), stop_after=depth).hidden
        return {f"layer {layer}": hidden[layer] for layer in range(1, depth + 1)}

    return tokens


def _null_condition(null: Text | None, config: BackboneConfig, size: int, device: torch.device) -> Condition:
    if null is not None:
        return null.to(device).expand(size)
    return torch.full((size,), config.classes, device=device)


def noised(index: np.ndarray, x0: Tensor, times: Times, config: BackboneConfig) -> Tensor:
    """Return the inputs of every probe: samples at `times` of the path, their noise drawn by index."""
    noise = Streams(0).normal("probe/noise", index, x0.shape[1:]).to(x0)
    return interpolate(x0, noise, times, config)


def _of_encoder(encoder: Encoder, dataset: Dataset) -> Tokens:
    """Return a function to the tokens of an encoder, which reads images, or latents if it is a run."""

    def tokens(index: np.ndarray, x0: Tensor) -> dict[str, Tensor]:
        return {encoder.name: view_of(encoder, index, x0).tokens}

    # A plug-in need not derive from `Viewer`.
    return _of_inputs(tokens, dataset) if getattr(encoder, "reads_samples", False) else tokens


def _of_inputs(tokens: Tokens, dataset: Dataset) -> Tokens:
    """Adapt the tokens of a latent network: its inputs are the latent means at the images' indices."""
    if Capabilities(dataset).latent is None:
        return tokens

    def of_latents(index: np.ndarray, images: Tensor) -> dict[str, Tensor]:
        means = np.stack([dataset.sample(int(i)).x for i in index])
        return tokens(index, torch.from_numpy(means).to(images))

    return of_latents


def gather(
    sources: list[Tokens],
    dataset: Dataset,
    index: np.ndarray,
    grid: Sequence[int] | None,
    device: torch.device,
) -> dict[str, LayerFeatures]:
    """Run images of the data set through all sources, in batches, and keep the features to be measured.

    Spatial measures take T^2 products for each image and layer; without a grid they are left out.
    """
    parts: dict[str, list[LayerFeatures]] = {}
    for start in tracked(range(0, len(index), BATCH), f"{len(index)} images"):
        batch = index[start : start + BATCH]
        x0 = torch.from_numpy(images(dataset, batch)[0]).float().div_(127.5).sub_(1).to(device)
        for source in sources:
            for name, tokens in source(batch, x0).items():
                with measuring(name):
                    parts.setdefault(name, []).append(_layer_features(tokens.float().cpu(), grid))
    return {
        name: LayerFeatures(*(torch.cat(columns) for columns in zip(*found, strict=True)))
        for name, found in parts.items()
    }


def _layer_features(tokens: Tensor, grid: Sequence[int] | None) -> LayerFeatures:
    layout = (local_distant(tokens, grid), spatial_decay(tokens, grid)) if grid else (torch.empty(0),) * 2
    return LayerFeatures(tokens.mean(1).double(), *layout)


@contextmanager
def measuring(name: str) -> Iterator[None]:
    """Turn a `MetricError` into a `UserError` that names what was measured."""
    try:
        yield
    except MetricError as error:
        raise UserError(f"{name} cannot be measured: {error}") from error


def _row(name: str, features: LayerFeatures, accuracy: Value | None, target: Tensor | None) -> Row:
    near = None if target is None else cknna(features.pooled, target, k=NEIGHBOURS)
    cka = None if target is None else linear_cka(features.pooled, target)
    spatial = over_images(features.local_distant), over_images(features.spatial_decay)
    return Row(name, accuracy, near, cka, *spatial)
