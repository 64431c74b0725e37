"""Tiny TorchScript networks for tests, and their features computed by hand."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


class Means(nn.Module):
    """A network of 6 features, mean and mean square of each channel; its 4 logits are the first 4 times
    10.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.cat([x.mean((2, 3)), (x * x).mean((2, 3))], 1)
        return features, 10 * features[:, :4]


class Plain(nn.Module):
    """A network whose only output is the mean of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def save_means(folder: Path) -> Path:
    return _saved(Means(), folder / "means.ts")


def save_plain(folder: Path) -> Path:
    return _saved(Plain(), folder / "plain.ts")


def _saved(network: nn.Module, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(file))
    return file


def by_hand(pixels: np.ndarray) -> np.ndarray:
    """Return the features of `Means`, in float64, of uint8 images (N, H, W, C)."""
    x = np.broadcast_to(pixels, (*pixels.shape[:3], 3)) / 127.5 - 1
    return np.concatenate([x.mean((1, 2)), (x * x).mean((1, 2))], axis=1)


def bytes_of(seed: int, n: int, *shape: int, top: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, (n, *shape), dtype=np.uint8)
