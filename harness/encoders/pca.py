"""Principal components of a frozen encoder's features: `pca:RANK:` and the name of any other encoder.

    z = V (f - mean) / std,    V the first RANK principal axes of the standardised features f

They are those of ReDi (zelaki/ReDi 58c65a8, calc_pca.py and train_redi.py): mean and deviation of each
channel over all tokens of up to 76 800 training images, and components without whitening. The sign of an axis
makes its largest entry positive. Axes are computed once, before the first step. They are cached with their
checksum, under a hash of encoder, weights, data, split and grid.

B  images    T  tokens    D  channels of the encoder
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.config import registry
from harness.data.dataset import Dataset, content_of
from harness.data.open import from_pixels, images, split
from harness.encoders.base import (
    Architecture,
    Choice,
    Encoder,
    EncoderChoice,
    Viewer,
    check_weights,
    no_attention,
    open_encoder,
    parse_name,
)
from harness.encoders.kept_tensors import Made, kept_tensors
from harness.errors import UserError
from harness.flow.batch import View
from harness.runtime.random_streams import Streams
from metrics.extractors.local import one_thread

RECIPE = 1
"""Version of the computation below; increase it with every change that moves an axis, to renew the cache."""
IMAGES, BATCH = 76_800, 64
"""Largest number of images that the axes are computed from, and images in one pass."""
LARGEST_RANK = 4096


class Basis(NamedTuple):
    """Statistics of an encoder's features, float32."""

    mean: Tensor
    """(D,)."""
    std: Tensor
    """(D,), 1 for a channel that does not vary."""
    axes: Tensor
    """(D, D), the principal axes as rows, that of the largest variance first."""


class PcaEncoder(Viewer):
    """The first principal components of any other encoder's features, for example pca:8:local:small."""

    heads = 0

    def __init__(
        self,
        choice: EncoderChoice,
        dataset: Dataset,
        *,
        grid: tuple[int, ...],
        held_out: float,
        device: torch.device,
    ) -> None:
        rank, inner = _inner(choice)
        self.inner: Encoder = open_encoder(inner, dataset, grid=grid, held_out=held_out, device=device)
        self.name, self.grid, self.dim = choice.name, grid, rank
        _check_rank(choice.name, rank, self.inner.dim)
        self.params, self.sha256, self.accuracy = self.inner.params, self.inner.sha256, self.inner.accuracy
        self.r2 = getattr(self.inner, "r2", None)
        self.flops = self.inner.flops + _projection_flops(grid, self.inner.dim, rank)
        # Of the images that the axes are computed from.
        self.one_off_flops = self.inner.flops * min(len(split(dataset, held_out).train), IMAGES)
        basis = _kept_basis(self.inner, dataset, held_out, device)
        self._mean, self._std, self._axes = (t.to(device) for t in (basis.mean, basis.std, basis.axes[:rank]))

    @staticmethod
    def architecture(model: str, shape: tuple[int, ...], classes: int, grid: tuple[int, ...]) -> Architecture:
        """Return the number of components, and the FLOPs of the inner encoder and of the projection."""
        rank, inner = split_name(model)
        family, name = parse_name(inner)
        about = registry.load("encoder", family).architecture(name, shape, classes, grid)
        _check_rank(f"pca:{model}", rank, about.dim)
        return Architecture(rank, about.flops + _projection_flops(grid, about.dim, rank))

    @staticmethod
    def check_weights(choice: EncoderChoice) -> None:
        """Raise `UserError` if the inner encoder's weights are not on this machine."""
        check_weights(_inner(choice)[1])

    @torch.no_grad()
    def view(self, images: Tensor, *, summary: bool = False, attention: int = 0) -> View:
        """Return components of images, float32 (B, T, rank), and, if requested, their mean."""
        if attention:
            raise no_attention(self.name)
        with torch.autocast(images.device.type, enabled=False):
            standard = (self.inner.features(images).float() - self._mean) / self._std
            tokens = standard @ self._axes.T
        return View(tokens, tokens.mean(dim=1) if summary else None)


def split_name(model: str) -> tuple[int, str]:
    """Return the rank and the inner name of `RANK:INNER`; raises `UserError` for another form."""
    rank, _, inner = model.partition(":")
    if not (rank.isascii() and rank.isdecimal() and 0 < int(rank[:5]) <= LARGEST_RANK) or len(rank) > 4:
        raise UserError(
            f"encoder 'pca:{model}': write the number of components, 1 to {LARGEST_RANK}, and an encoder, "
            "for example pca:8:local:small"
        )
    family = parse_name(inner)[0]
    if family in ("pca", "cached") or getattr(registry.load("encoder", family), "reads_samples", False):
        raise UserError(
            f"encoder 'pca:{model}': components are those of an encoder of pictures, not of {family}:; "
            "choose another one"
        )
    return int(rank), inner


def _inner(choice: EncoderChoice) -> tuple[int, Choice]:
    rank, name = split_name(parse_name(choice.name)[1])
    return rank, Choice(name, choice.weights, choice.sha256, choice.download)


def _check_rank(name: str, rank: int, dim: int) -> None:
    if rank > dim:
        raise UserError(f"encoder '{name}': its tokens have {dim} channels, so give at most {dim} components")


def _projection_flops(grid: tuple[int, ...], dim: int, rank: int) -> int:
    return 2 * int(np.prod(grid)) * dim * rank


def _kept_basis(encoder: Encoder, dataset: Dataset, held_out: float, device: torch.device) -> Basis:
    """Return the statistics of an encoder's features from the cache, or compute them."""
    data = [content_of(dataset), dataset.shape, held_out]
    parts = [RECIPE, encoder.name, encoder.sha256, *data, encoder.grid, device.type]

    def compute() -> Made:
        return basis_of(encoder, dataset, split(dataset, held_out).train, device)._asdict(), {}

    return Basis(**kept_tensors("pca", parts, compute).tensors)


@torch.no_grad()
def basis_of(encoder: Encoder, dataset: Dataset, train: np.ndarray, device: torch.device) -> Basis:
    """Return statistics of features of at most `IMAGES` training images, accumulated in float64."""
    chosen = train[Streams(0).permutation("encoder/pca", 0, len(train))[:IMAGES]]
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    with one_thread(), torch.autocast(device.type, enabled=False):
        for start in range(0, len(chosen), BATCH):
            pixels = from_pixels(images(dataset, chosen[start : start + BATCH])[0]).to(device)
            tokens = encoder.features(pixels).flatten(0, 1).double().cpu()
            count, total, products = (
                count + len(tokens),
                total + tokens.sum(dim=0),
                products + tokens.T @ tokens,
            )
        mean = total / count
        covariance = products / count - torch.outer(mean, mean)
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        # Rounding leaves a little variance in a channel that does not vary.
        std = torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0)
        return Basis(mean.float(), std.float(), principal_axes(covariance / torch.outer(std, std)).float())


def principal_axes(correlation: Tensor) -> Tensor:
    """Return the eigenvectors of a symmetric matrix as rows, that of the largest eigenvalue first."""
    vectors = torch.linalg.eigh(correlation).eigenvectors.flip(1).T
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return vectors * largest.sign()
