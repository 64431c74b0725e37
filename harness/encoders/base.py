"""What a frozen encoder is, and the door to it.

B  images    T  tokens, rows x columns, row by row    C, H, W  channels and pixels
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness import registry
from harness.data.base import Dataset
from harness.errors import UserError


class EncoderChoice(Protocol):
    """What is asked for: a spec's `method.encoder`."""

    name: str
    """`family:model`."""
    weights: str
    sha256: str
    download: bool


@dataclass(frozen=True)
class Choice:
    """An `EncoderChoice` that is made in code, not in a spec."""

    name: str
    weights: str = ""
    sha256: str = ""
    download: bool = False


class Encoder(Protocol):
    """Made by its class as `cls(choice, dataset, grid=..., held_out=..., device=...)`. Frozen: no gradient reaches it.

    A class also has `architecture(model, shape, classes, grid)`, which needs neither weights nor data. One that knows the data
    set may have `features_at(index, images)`, which `features_of` prefers.
    """

    name: str
    dim: int
    """Width of a token."""
    params: int
    flops: int
    """Of one image's forward pass."""
    sha256: str
    """Of the weights, 64 hex digits."""
    grid: tuple[int, int]
    """Rows and columns of its tokens: those of the backbone."""
    accuracy: float | None
    """On the held-out images, for an encoder trained here; None for any other."""

    def features(self, images: Tensor) -> Tensor:
        """Tokens, float32 (B, T, dim), of images, float32 (B, C, H, W) in [-1, 1] on the encoder's device."""
        ...


def features_of(encoder: Encoder, index: np.ndarray, images: Tensor) -> Tensor:
    """Tokens, float32 (B, T, dim), of images at data set indices (B,): looked up where the encoder keeps them, else computed."""
    kept = getattr(encoder, "features_at", None)
    return encoder.features(images) if kept is None else kept(index, images)


class Architecture(NamedTuple):
    """What is known of an encoder before it has weights."""

    dim: int
    flops: int
    """Of one image's forward pass."""


def open_encoder(
    choice: EncoderChoice, dataset: Dataset, *, grid: tuple[int, int], held_out: float, device: torch.device
) -> Encoder:
    """The encoder of a name, its tokens on the backbone's grid; trains it first when it is one that is made here.

    `held_out` is the share of the data that it must not see. Raises `UserError` for an unknown name, for weights that are
    absent, damaged or not the ones of `sha256`, and for a grid that the encoder cannot have.
    """
    cls = registry.load("encoder", parse_name(choice.name)[0])
    encoder = cls(choice, dataset, grid=grid, held_out=held_out, device=device)
    if choice.sha256 and choice.sha256.lower() != encoder.sha256:
        raise UserError(
            f"encoder '{choice.name}' has weights of sha256 {encoder.sha256}, but method.encoder.sha256 asks for "
            f"{choice.sha256}; give the file that was meant, or clear sha256"
        )
    return encoder


def parse_name(name: str) -> tuple[str, str]:
    """Family and model of `family:model`."""
    family, _, model = name.partition(":")
    if not model:
        raise UserError(
            f"encoder '{name}' names no model: expected family:model, as local:small; see: flowrace list encoders"
        )
    return family, model


def count_flops(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """FLOPs (two per multiply-add, as torch counts them) of one image's forward pass; the network is on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops()
