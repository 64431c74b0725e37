"""Frozen encoders: their protocol, and opening one by name.

B  images    T  tokens, rows x columns, row by row    C, H, W  channels and pixels
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.config import registry
from harness.data.dataset import Dataset, pictured
from harness.errors import UserError
from harness.flow.batch import Batch, Draw, View
from harness.runtime.precision import product


class EncoderChoice(Protocol):
    """The encoder that a spec names (`method.encoder`)."""

    @property
    def name(self) -> str:
        """`family:model`."""
        ...

    @property
    def weights(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def download(self) -> bool: ...


@dataclass(frozen=True)
class Choice:
    """An `EncoderChoice` made in code instead of a spec."""

    name: str
    weights: str = ""
    sha256: str = ""
    download: bool = False


class Encoder(Protocol):
    """A frozen encoder, constructed as `cls(choice, dataset, grid=..., held_out=..., device=...)`.

    A class also has `architecture(model, shape, classes, grid)`, which needs neither weights nor data. Other
    members are optional, with defaults in `Viewer`. `view_at(index, images, ...)` looks up features by data
    set index. `one_off_flops` is the cost of features that are computed once, not in every step.
    `check_weights(choice)` raises `UserError` if the weights are not on this machine. If a name does not
    state the architecture, `architecture_of(choice, dataset, grid)` takes the place of `architecture`.
    """

    name: str
    dim: int
    """Width of a token."""
    params: int
    flops: int
    """FLOPs of one image's forward pass."""
    heads: int
    """Attention heads of a block; 0 if the attention cannot be read."""
    sha256: str
    """SHA-256 of the weights, 64 hex digits."""
    grid: tuple[int, ...]
    """Rows and columns of its tokens, equal to those of the backbone."""
    accuracy: float | None
    """Accuracy on held-out images of an encoder trained on this data set; None for any other."""

    def features(self, images: Tensor) -> Tensor:
        """Return tokens, float32 (B, T, dim).

        Images are float32 (B, C, H, W) in [-1, 1], on the encoder's device.
        """
        ...

    def view(self, images: Tensor, *, summary: bool = False, attention: int = 0) -> View:
        """Return the tokens of images and, if requested, their summary and the last blocks' attention.

        Raises `UserError` if the encoder has no such summary or attention.
        """
        ...


class Viewer:
    """Base class of encoders, which implement `view`; optional members have defaults."""

    reads_samples: ClassVar[bool] = False
    """True if it reads the samples that a network generates, such as latents, instead of their pictures."""
    accuracy: float | None = None
    r2: float | None = None
    """Share of variance explained on held-out samples, of an encoder trained on numbers of this data set."""
    one_off_flops: int | None = None
    """FLOPs of computing all features once, if a step then costs none."""

    @staticmethod
    def check_weights(choice: EncoderChoice) -> None:
        """Raise `UserError` if the weights of a choice are not on this machine; an encoder may have none."""

    def view(self, images: Tensor, *, summary: bool = False, attention: int = 0) -> View:
        raise NotImplementedError

    def view_at(
        self, index: np.ndarray, images: Tensor, *, summary: bool = False, attention: int = 0
    ) -> View:
        """Return the view of the images at data set indices (B,)."""
        return self.view(images, summary=summary, attention=attention)

    def features(self, images: Tensor) -> Tensor:
        return self.view(images).tokens


def described(encoder: Encoder) -> dict[str, Any]:
    """Return the properties of an encoder that a run records, as JSON."""
    about: dict[str, Any] = {"name": encoder.name, "params": encoder.params, "flops": encoder.flops}
    # A plug-in need not derive from `Viewer`.
    if (once := getattr(encoder, "one_off_flops", None)) is not None:
        about["one_off_flops"] = once
    if (r2 := getattr(encoder, "r2", None)) is not None:
        about["r2"] = r2
    return about | {"sha256": encoder.sha256, "accuracy": encoder.accuracy}


def view_of(
    encoder: Encoder, index: np.ndarray, images: Tensor, *, summary: bool = False, attention: int = 0
) -> View:
    """Return an encoder's view of images at data set indices (B,), looked up if it stores features."""
    # A plug-in need not derive from `Viewer`.
    look_up = getattr(encoder, "view_at", None)
    if look_up is not None:
        return look_up(index, images, summary=summary, attention=attention)
    return encoder.view(images, summary=summary, attention=attention)


def guided_view_of(encoder: Encoder, batch: Batch, draw: Draw, scale: float) -> View:
    """Return an encoder's features of the student's noised samples, guided by their conditions.

    `scale` is `Needs.guided`. Raises `UserError` for an encoder that has no such features.
    """
    # Only networks that were trained on noised samples have it.
    guided = getattr(encoder, "guided_view", None)
    if guided is None:
        raise UserError(
            f"encoder '{encoder.name}' reads clean samples only; name a flowrace run, for example "
            "run:runs/0123456789ab"
        )
    return guided(batch, draw, scale)


class Architecture(NamedTuple):
    """Properties of an encoder that need no weights."""

    dim: int
    flops: int
    """FLOPs of one image's forward pass."""
    heads: int = 0
    """Attention heads of a block; 0 if the attention cannot be read."""


def architecture_of(choice: EncoderChoice, dataset: Dataset, grid: tuple[int, ...]) -> Architecture:
    """Return the architecture of an encoder on a data set, without reading weights."""
    family, model = parse_name(choice.name)
    cls, read = registry.load("encoder", family), data_of(choice, dataset)
    # A plug-in need not derive from `Viewer`.
    if (of := getattr(cls, "architecture_of", None)) is not None:
        return of(choice, read, grid)
    return cls.architecture(model, read.shape, read.classes, grid)


def data_of(choice: EncoderChoice, dataset: Dataset) -> Dataset:
    """Return the data set that an encoder reads: usually the pictures of latents, or else the samples."""
    return dataset if reads_samples(choice) else pictured(dataset)


def reads_samples(choice: EncoderChoice) -> bool:
    """Return whether an encoder reads the samples that a network generates instead of their pictures."""
    # A plug-in need not derive from `Viewer`.
    return getattr(registry.load("encoder", parse_name(choice.name)[0]), "reads_samples", False)


def check_weights(choice: EncoderChoice) -> None:
    """Raise `UserError` if the encoder's package or weights are not on this machine. Nothing is loaded.

    Weights that the choice allows to download are not missing.
    """
    family = parse_name(choice.name)[0]
    try:
        cls = registry.load("encoder", family)
    except ImportError as error:
        raise UserError(f"encoder '{choice.name}' needs a package that is not installed: {error}") from error
    # A plug-in need not derive from `Viewer`.
    check = getattr(cls, "check_weights", None)
    if check is not None and (choice.weights or not choice.download):
        check(choice)


def open_encoder(
    choice: EncoderChoice, dataset: Dataset, *, grid: tuple[int, ...], held_out: float, device: torch.device
) -> Encoder:
    """Return the encoder of that name, with its tokens on the backbone's grid.

    A local encoder is trained first, without the `held_out` fraction of the data. Raises `UserError` for an
    unknown name, for weights that are missing, damaged or do not match `sha256`, and for a grid that the
    encoder cannot produce.
    """
    cls = registry.load("encoder", parse_name(choice.name)[0])
    encoder = cls(choice, dataset, grid=grid, held_out=held_out, device=device)
    if choice.sha256 and choice.sha256.lower() != encoder.sha256:
        raise UserError(
            f"encoder '{choice.name}' has weights of sha256 {encoder.sha256}, but method.encoder.sha256 is "
            f"{choice.sha256}; set method.encoder.weights to the matching file, or clear "
            "method.encoder.sha256"
        )
    check_grid(choice.name, encoder.grid, grid)
    return encoder


def check_grid(name: str, found: tuple[int, ...], grid: tuple[int, ...]) -> None:
    """Raise `UserError` unless an encoder's tokens are on the backbone's grid, of one to three axes."""
    if tuple(found) != tuple(grid):
        has, needed = ("x".join(map(str, axes)) for axes in (found, grid))
        raise UserError(
            f"encoder '{name}' has a grid of {has} tokens, but the backbone has {needed}; choose another "
            "encoder, backbone.patch or data.resolution"
        )


def parse_name(name: str) -> tuple[str, str]:
    """Split `family:model`; raises `UserError` for a name without a model."""
    family, _, model = name.partition(":")
    if not model:
        raise UserError(
            f"encoder '{name}' names no model: expected family:model, for example local:small; see: flowrace "
            "list encoders"
        )
    return family, model


def attention_of(q: Tensor, k: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d)), float32; q, k: (B, heads, T, d)."""
    return (product(q, k.transpose(-2, -1)) / q.shape[-1] ** 0.5).softmax(dim=-1)


def no_attention(name: str, blocks: int = 0) -> UserError:
    """Return the error for an encoder whose attention cannot be read, or that has too few `blocks`."""
    if blocks:
        return UserError(f"encoder '{name}' has {blocks} blocks; choose a deeper one or reduce method.layers")
    return UserError(
        f"encoder '{name}' does not expose its attention; choose a plain ViT of timm, local:<size> or "
        "random:<size>"
    )


def count_flops(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Count the FLOPs of one image's forward pass, two for each multiply-add.

    The pass runs on the meta device: there torch splits attention into matrix products, which it counts. It
    does not count the fused attention kernel of the CPU.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops()
