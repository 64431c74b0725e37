"""Encoders of small files on small pictures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from harness.encoders.base import open_encoder


def opened(
    name: str, file: Any = "", channels: int = 3, grid: tuple[int, int] = (4, 4), **fields: Any
) -> Any:
    """Return the encoder of a name with the weights of a file, for pictures of 32x32 pixels."""
    choice = SimpleNamespace(
        **{"name": name, "weights": str(file), "sha256": "", "download": False, **fields}
    )
    dataset = SimpleNamespace(shape=(channels, 32, 32), classes=10, fingerprint="", modality="image")
    return open_encoder(choice, dataset, grid=grid, held_out=0.1, device=torch.device("cpu"))


def pictures(channels: int = 3) -> torch.Tensor:
    """Return two random pictures in [-1, 1]."""
    return torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
