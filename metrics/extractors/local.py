"""A small convolutional classifier trained on the data set itself: the extractor that needs no download.

Its features are specific to the data set, so distances between them compare only arms of races on that data
set. The weights are a pure function of images, labels and recipe (one thread, a separate random stream). They
are cached as safetensors under a hash of all three, with a checksum; a damaged entry is recreated.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.extractors.base import Extractor, check_images
from metrics.files.cache import Saved, kept
from metrics.value import MetricError

RECIPE = 1
"""Version of the training below; a change that alters weights must increase it, to invalidate the cache."""
DIM, SIDE = 64, 32
"""Number of features, and the longest side in pixels to which images are reduced."""
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY, WARMUP = 400, 64, 3e-3, 0.05, 0.1
HELD_OUT = 0.1
"""Share of images held out to measure the accuracy."""
LEAST = 20
"""Smallest number of images to train on."""


class TrainingImages(NamedTuple):
    """Images and labels with a known identity, read only if no network trained on them is in the cache."""

    content: str
    """Hash, or any other text, that determines images and labels."""
    shape: tuple[int, ...]
    """Shape of an image, (C, H, W), or of a clip, (T, C, H, W)."""
    read: Callable[[], tuple[np.ndarray, np.ndarray]]
    """Function that returns images uint8 (n, *shape) and their labels (n,)."""


class Network(nn.Module):
    """Three convolutions, average pooling to 4x4, a layer of DIM features, and a linear classifier."""

    def __init__(self, shape: torch.Size, classes: int, random: torch.Generator) -> None:
        super().__init__()
        # Large images are reduced at once, so that they cost no more than small ones.
        stride = 1 if max(shape[-2:]) <= SIDE // 2 else 2
        # Built on the meta device, so that torch's global generator is not advanced.
        with torch.device("meta"):
            self.convolutions = nn.Sequential(
                nn.Conv2d(shape[-3], 32, 3, padding=1, stride=stride), nn.GroupNorm(4, 32), nn.GELU(),
                nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.GroupNorm(8, 64), nn.GELU(),
                nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.GELU(),
            )  # fmt: skip
            self.features = nn.Linear(64 * 16, DIM)
            self.head = nn.Linear(DIM, classes)
        self.to_empty(device="cpu")
        for module in self.modules():
            initialise(module, random)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, DIM) of images uint8 (B, C, H, W), after the last nonlinearity."""
        maps = self.convolutions(_pixels(images))
        return F.gelu(self.features(F.adaptive_avg_pool2d(maps, 4).flatten(1)))

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return features (B, DIM) and logits (B, classes)."""
        features = self(images)
        return {"features": features, "logits": self.head(features)}


def load(
    where: Any,
    *,
    device: torch.device,
    images: Any,
    labels: Any,
    classes: int | None,
    cache: Path | None,
    **_: Any,
) -> Extractor:
    """Return the classifier of a data set, read from the cache or trained now in 5 to 20 s on one core.

    `images` may be `TrainingImages`, without `labels`, whose images are read only for training.
    """
    if where is not None:
        raise MetricError("extractor 'local' is trained on the data set and takes no weights; remove them")
    shape, trained = _known(images, classes, cache) or _trained(images, labels, classes, cache)
    network = Network(torch.Size(shape), _class_count(classes), torch.Generator())
    network.load_state_dict(trained.tensors)
    network.to(device).requires_grad_(False).eval()
    return Extractor(
        name="local",
        dim=DIM,
        sha256=trained.sha256,
        preprocessing=f"bytes to [-1, 1]; longer side to {SIDE} at most, bilinear with antialias",
        channels=shape[-3],
        device=device,
        network=network.outputs,
        beside={"logits": _class_count(classes)},
        accuracy=float(trained.meta["accuracy"]),
    )


def _known(images: Any, classes: int | None, cache: Path | None) -> tuple[tuple[int, ...], Saved] | None:
    """Return image shape and weights for images with a known identity; None for given images."""
    if not isinstance(images, TrainingImages):
        return None
    content = f"{RECIPE} {tuple(images.shape)} {_class_count(classes)} {images.content}".encode()
    train = lambda: _trained(*images.read(), classes, cache)[1]  # noqa: E731
    if cache is None:
        return images.shape, train()
    file = Path(cache) / f"local-by-identity-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    return images.shape, kept(file, train)


def _trained(
    images: Any, labels: Any, classes: int | None, cache: Path | None
) -> tuple[tuple[int, ...], Saved]:
    """Return image shape and weights for given images, from the cache by their bytes or trained now."""
    x, y, classes = _checked(images, labels, classes)
    if cache is None:
        return x.shape, _train(x, y, classes)
    file = Path(cache) / f"local-{_key(x, y, classes)}.safetensors"
    return x.shape, kept(file, lambda: _train(x, y, classes))


def _class_count(classes: int | None) -> int:
    if classes is None:
        raise MetricError("extractor 'local' is trained on the data set: give images, labels and classes")
    if classes < 2:
        raise MetricError(
            "extractor 'local' is a classifier, but this data set has no classes; use another extractor, "
            "for example torchscript:<file>"
        )
    return classes


def _checked(images: Any, labels: Any, classes: int | None) -> tuple[Tensor, Tensor, int]:
    if images is None or labels is None:
        raise MetricError("extractor 'local' is trained on the data set: give images, labels and classes")
    classes = _class_count(classes)
    x = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    check_images(x)
    y = np.asarray(labels)
    if y.shape != (len(x),) or y.dtype.kind not in "iu" or len(x) < LEAST:
        raise MetricError(
            f"extractor 'local' needs at least {LEAST} images and one integer label for each, but got "
            f"{len(x)} images and labels of shape {y.shape}, {y.dtype}"
        )
    if y.min() < 0 or y.max() >= classes:
        wrong = y[(y < 0) | (y >= classes)][0]
        raise MetricError(f"label {wrong} is out of range; expected 0 .. {classes - 1} for {classes} classes")
    return x, torch.from_numpy(y.astype(np.int64)), classes


def _key(x: Tensor, y: Tensor, classes: int) -> str:
    """Return 16 hex digits of the sha256 over images, labels and recipe."""
    digest = hashlib.sha256(f"{RECIPE} {tuple(x.shape)} {classes} ".encode())
    digest.update(x.contiguous().numpy().tobytes())
    digest.update(y.numpy().tobytes())
    return digest.hexdigest()[:16]


def _train(x: Tensor, y: Tensor, classes: int) -> Saved:
    """Train on all but the held-out tenth, and measure the accuracy on that.

    The optimizer is AdamW with warm-up and a cosine schedule.
    """
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(x), generator=random)
    held_out, train = order.tensor_split([math.ceil(HELD_OUT * len(x))])
    network = Network(x.shape, classes, random)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, weight_decay=WEIGHT_DECAY)
    with one_thread(), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for step, index in zip(range(STEPS), batches(train, random), strict=False):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule(step / STEPS)
            loss = F.cross_entropy(network.outputs(x[index])["logits"], y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy = _accuracy(network, x, y, held_out)
    return Saved(dict(network.state_dict()), {"accuracy": f"{accuracy:.4f}"})


def batches(index: Tensor, random: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of shuffled epochs, endlessly; an incomplete last batch of an epoch is dropped."""
    size = min(BATCH, len(index))
    while True:
        shuffled = index[torch.randperm(len(index), generator=random)]
        yield from (batch for batch in shuffled.split(size) if len(batch) == size)


def schedule(share: float) -> float:
    """Return the factor of the learning rate after a share of training: linear warm-up times a cosine."""
    return min(share / WARMUP, 1.0) * 0.5 * (1 + math.cos(math.pi * share))


@torch.no_grad()
def _accuracy(network: Network, x: Tensor, y: Tensor, index: Tensor) -> float:
    guesses = torch.cat([network.outputs(x[part])["logits"].argmax(1) for part in index.split(500)])
    return float((guesses == y[index]).double().mean())


def initialise(module: nn.Module, random: torch.Generator) -> None:
    """Draw He-normal matrices; set biases to 0 and the scales of norms to 1."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, generator=random)
    elif isinstance(module, nn.GroupNorm):
        nn.init.ones_(module.weight)
    # Not every module has a bias.
    if isinstance(bias := getattr(module, "bias", None), Tensor):
        nn.init.zeros_(bias)


def _pixels(images: Tensor) -> Tensor:
    """Return bytes mapped to [-1, 1], reduced to at most SIDE pixels on the longer side."""
    x = images.float() / 127.5 - 1
    height, width = x.shape[2:]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return x
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Use a single thread, because the order of floating-point sums depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
