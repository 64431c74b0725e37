"""Local encoders: a small ViT trained on this data set as a classifier, and the same network untrained.

Data without labels may have numbers in their place, for example the states of a robot at the frames of a
video. The same network then learns to predict them by least squares.

Both are pure functions of the data, the split, the size and the grid. Initial weights and data order come
from named streams, and training runs on one thread by a fixed recipe. Trained weights are cached under a hash
of all that, with their checksum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone.tokens import patchify
from harness.data.dataset import Capabilities, Dataset, content_of
from harness.data.open import Split, images, split
from harness.encoders.base import (
    Architecture,
    EncoderChoice,
    Viewer,
    attention_of,
    count_flops,
    no_attention,
    parse_name,
)
from harness.encoders.kept_tensors import Made, kept_tensors
from harness.errors import UserError, unknown
from harness.files.parse import parse_json
from harness.flow.batch import View
from harness.records import checkpoint
from harness.runtime.random_streams import Streams
from metrics.extractors.local import one_thread


class Size(NamedTuple):
    depth: int
    width: int
    heads: int


SIZES = {
    "tiny": Size(2, 32, 2),
    "small": Size(4, 64, 4),
    "base": Size(6, 128, 4),
    "large": Size(8, 256, 8),
}
RECIPE = 1
"""Version of the training below; increase it with every change that moves a weight, to renew the cache."""
EPOCHS, MAX_STEPS, BATCH = 15, 4000, 64
LEARNING_RATE, WARMUP, WEIGHT_DECAY = 3e-3, 0.1, 0.05


class Vit(nn.Module):
    """Pre-norm ViT with learned positions and no class token; the head reads the mean of the tokens."""

    def __init__(self, size: Size, shape: tuple[int, ...], classes: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.patch = tuple(axis // rows for axis, rows in zip(shape[1:], grid, strict=True))
        self.embed = nn.Linear(shape[0] * math.prod(self.patch), size.width)
        self.position = nn.Parameter(torch.empty(math.prod(grid), size.width))
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, classes)

    def forward(self, images: Tensor, captured: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """Return the tokens after the final norm, (B, T, width), of images (B, C, *axes).

        If given, `captured` receives every block's queries and keys.
        """
        if len(self.patch) == 2:
            patches = F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        else:
            patches = patchify(images, self.patch)
        x = self.embed(patches) + self.position
        for block in self.blocks:
            x = block(x, captured)
        return self.norm(x)

    def predict(self, images: Tensor) -> Tensor:
        """Return logits, (B, classes), or numbers."""
        return self.head(self(images).mean(1))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        """`causal` lets a token attend to earlier ones and itself only."""
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, captured: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if captured is not None:
            captured.append((q, k))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class RandomEncoder(Viewer):
    """The untrained network of `local:<size>`, as a control for the effect of its training."""

    def __init__(
        self,
        choice: EncoderChoice,
        dataset: Dataset,
        *,
        grid: tuple[int, ...],
        held_out: float,
        device: torch.device,
    ) -> None:
        model = parse_name(choice.name)[1]
        _refuse_file(choice)
        about = self.architecture(model, dataset.shape, dataset.classes, grid)
        self.name, self.grid, (self.dim, self.flops, self.heads) = choice.name, grid, about
        network = build(model, dataset.shape, self._outputs(dataset), grid)
        self._prepare(network, model, dataset, held_out, device)
        self.sha256 = checkpoint.digest(network.state_dict())
        self.params = sum(p.numel() for p in network.parameters())
        self._network = network.to(device).requires_grad_(False).eval()

    @staticmethod
    @cache
    def architecture(model: str, shape: tuple[int, ...], classes: int, grid: tuple[int, ...]) -> Architecture:
        """Return width, FLOPs and heads.

        Raises `UserError` for an unknown size and for a grid that does not divide the image.
        """
        size = _size(model)
        if any(axis % rows for axis, rows in zip(shape[1:], grid, strict=True)):
            axes = "x".join(map(str, shape[1:]))
            raise UserError(
                f"encoder '{model}': samples of {axes} do not divide into a grid of "
                f"{'x'.join(map(str, grid))} tokens"
            )
        with torch.device("meta"):
            return Architecture(size.width, count_flops(Vit(size, shape, classes, grid), shape), size.heads)

    @torch.no_grad()
    def view(self, images: Tensor, *, summary: bool = False, attention: int = 0) -> View:
        """Return tokens of images; their summary is the mean of the tokens, the input of the classifier."""
        if attention > len(self._network.blocks):
            raise no_attention(self.name, len(self._network.blocks))
        captured: list[tuple[Tensor, Tensor]] = []
        tokens = self._network(images, captured if attention else None).float()
        maps = [attention_of(q, k) for q, k in captured[-attention:]]
        return View(
            tokens, tokens.mean(dim=1) if summary else None, torch.stack(maps, dim=1) if attention else None
        )

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by name."""
        return self._network.state_dict()

    def _outputs(self, dataset: Dataset) -> int:
        """Return the number of outputs of the head, which an untrained network does not use."""
        return dataset.classes

    def _prepare(
        self, network: Vit, model: str, dataset: Dataset, held_out: float, device: torch.device
    ) -> None:
        """Prepare the initial network; a subclass trains it."""


class LocalEncoder(RandomEncoder):
    """A small ViT trained on the labels of the training split, or on its numbers; sizes tiny, small, base,
    large."""

    def _outputs(self, dataset: Dataset) -> int:
        targets = numbers_of(dataset)
        return dataset.classes if targets is None else len(targets(0))

    def _prepare(
        self, network: Vit, model: str, dataset: Dataset, held_out: float, device: torch.device
    ) -> None:
        found = trained(network, model, dataset, self.grid, held_out, device)
        self.accuracy, self.r2 = (found, None) if numbers_of(dataset) is None else (None, found)


def numbers_of(dataset: Dataset) -> Callable[[int], np.ndarray] | None:
    """Return the function from an index to the numbers that an encoder learns; None for data with labels.

    None also for data with neither.
    """
    return Capabilities(dataset).targets if dataset.classes < 2 else None


def build(model: str, shape: tuple[int, ...], classes: int, grid: tuple[int, ...]) -> Vit:
    """Return the network with its initial weights, which depend only on each parameter's name and shape.

    Xavier-uniform matrices, positions with standard deviation 0.02, zero biases, unit norms.
    """
    # Initialisation on the meta device leaves torch's own generator unchanged.
    with torch.device("meta"):
        network = Vit(_size(model), shape, classes, grid)
    network.to_empty(device="cpu")
    streams = Streams(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(initial_weights(name, parameter.shape, streams))
    return network


def trained(
    network: Vit, model: str, dataset: Dataset, grid: tuple[int, ...], held_out: float, device: torch.device
) -> float | None:
    """Load or train the weights of the network in place, and return its held-out accuracy, or R2 of numbers.

    If the cached weights are damaged, the network is trained again. Raises `UserError` for data without
    labels and numbers.
    """
    numbers = numbers_of(dataset)
    if dataset.classes < 2 and numbers is None:
        raise UserError(
            f"encoder 'local:{model}' learns from labels, which this data set does not have; choose "
            f"timm:<model> or random:{model}"
        )
    parts = [RECIPE, content_of(dataset), dataset.shape, dataset.classes, held_out, model, grid, device.type]

    def train() -> Made:
        sides = split(dataset, held_out)
        fit(network, dataset, sides.train, device)
        return network.state_dict(), {"accuracy": json.dumps(score(network, dataset, sides, device))}

    saved = kept_tensors(f"local-{model}", parts, train)
    network.load_state_dict(saved.tensors)
    return parse_json(saved.meta["accuracy"])


def fit(network: Vit, dataset: Dataset, train: np.ndarray, device: torch.device) -> None:
    """Train in place: AdamW on cross-entropy, or on squared errors, with linear warm-up and cosine decay.

    It takes 15 epochs of batches of 64, at most 4000 steps.
    """
    streams = Streams(0)
    per_epoch = max(1, len(train) // BATCH)
    steps = min(EPOCHS * per_epoch, MAX_STEPS)
    network.to(device).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    order = train
    with one_thread(), torch.enable_grad():
        for step in range(steps):
            epoch, place = divmod(step, per_epoch)
            if place == 0:
                order = train[streams.permutation("encoder/order", epoch, len(train))]
            pixels, known = _pairs(dataset, order[place * BATCH : (place + 1) * BATCH])
            predicted, known = network.predict(_scaled(pixels, device)), torch.from_numpy(known).to(device)
            loss = (F.mse_loss if known.is_floating_point() else F.cross_entropy)(predicted, known)
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * schedule((step + 1) / steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


@torch.no_grad()
def score(network: Vit, dataset: Dataset, sides: Split, device: torch.device) -> float | None:
    """Return the accuracy on held-out images, or R2 = 1 - errors / variance of numbers.

    None without held-out images, and for numbers that do not vary.
    """
    if not len(sides.held_out):
        return None
    network.to(device).eval()
    outputs, truths = [], []
    with one_thread():
        for start in range(0, len(sides.held_out), 250):
            pixels, known = _pairs(dataset, sides.held_out[start : start + 250])
            outputs.append(network.predict(_scaled(pixels, device)).cpu().numpy())
            truths.append(known)
    predicted, known = np.concatenate(outputs), np.concatenate(truths)
    if numbers_of(dataset) is None:
        return int((predicted.argmax(1) == known).sum()) / len(known)
    variance = float(np.square(known - known.mean(axis=0)).sum())
    return 1 - float(np.square(predicted - known).sum()) / variance if variance else None


def _pairs(dataset: Dataset, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return samples, uint8 (n, *shape), with labels int64 (n,), or numbers float32 (n, N)."""
    pixels, labels = images(dataset, places)
    numbers = numbers_of(dataset)
    return pixels, labels if numbers is None else np.stack([numbers(int(place)) for place in places])


def _size(model: str) -> Size:
    if model not in SIZES:
        raise unknown("encoder size", model, SIZES)
    return SIZES[model]


def initial_weights(name: str, shape: torch.Size, streams: Streams) -> Tensor:
    """Return the initial weights of a parameter, from its stream."""
    if name == "position":
        return 0.02 * streams.normal(f"encoder/init/{name}", [0], shape)[0]
    if len(shape) == 1:
        return torch.ones(shape) if "norm" in name and name.endswith("weight") else torch.zeros(shape)
    bound = math.sqrt(6 / sum(shape))
    return bound * (2 * streams.uniform(f"encoder/init/{name}", [0], shape)[0] - 1)


def _scaled(pixels: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(pixels).to(device).float().div_(127.5).sub_(1)


def schedule(progress: float) -> float:
    """Return the factor of the learning rate after a share of the training: warm-up, then cosine decay."""
    return min(progress / WARMUP, 0.5 + 0.5 * math.cos(math.pi * progress))


def _refuse_file(choice: EncoderChoice) -> None:
    if choice.weights:
        raise UserError(f"encoder '{choice.name}' takes no weights file; remove method.encoder.weights")
