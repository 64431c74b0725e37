"""What a codec is, and the door to it: frozen, from a local file, addressed by the content of its weights.

B  images    C, H, W  channels and pixels    c, h, w  channels and places of a latent
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from harness import registry
from harness.data.dataset import Dataset
from harness.errors import UserError
from harness.spec import DataSpec


class Moments(NamedTuple):
    """Of the posterior over latents, float32 (B, c, h, w) each, not scaled."""

    mean: Tensor
    std: Tensor


class Codec(Protocol):
    """Made by its class as `cls(weights, device)`; `weights` is a local path, empty for a codec without any."""

    sha256: str
    """Of its weights and configuration, 64 hex digits."""
    scale: float
    """A latent that a network learns is `scale` times a draw of the posterior."""

    def shape(self, pixels: tuple[int, int, int]) -> tuple[int, int, int]:
        """(c, h, w) for images (C, H, W); raises `UserError` for images that it cannot take."""
        ...

    def encode(self, images: Tensor) -> Moments:
        """Of images (B, C, H, W) in [-1, 1]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W), about [-1, 1], of scaled latents (B, c, h, w)."""
        ...


def open_codec(name: str, weights: str, device: torch.device) -> Codec:
    """The codec `family` or `family@<digits>` with the weights at a path.

    Raises `UserError` for an unknown family, and for weights that are absent, damaged or not those of the digits.
    """
    family, _, digits = name.partition("@")
    codec = registry.load("codec", family)(weights, device)
    if not codec.sha256.startswith(digits):
        raise UserError(
            f"codec '{name}': the weights in {weights} are {family}@{codec.sha256[:8]}; "
            "name the folder of the right ones in data.codec_weights"
        )
    return codec


def addressed(spec: DataSpec) -> DataSpec:
    """The spec with a codec `family:PATH` named by its content, `family@<8 digits>`; the path goes to `data.codec_weights`,
    which is not hashed: the same weights at another place are the same run."""
    if spec.codec and spec.name != "latents":
        raise UserError(
            f"data.codec = '{spec.codec}' decodes latents, and data.name = '{spec.name}' has none; "
            "make them with flowrace data encode, then set data.name=latents"
        )
    family, colon, path = spec.codec.partition(":")
    registry.load("codec", family.partition("@")[0]) if family else None
    if not colon:
        return spec
    sha256 = registry.load("codec", family).address(Path(path))
    return spec.model_copy(update={"codec": f"{family}@{sha256[:8]}", "codec_weights": path})


class Decoder(NamedTuple):
    decode: Callable[[Tensor], Tensor] | None
    about: dict[str, str]
    """For the protocol of an evaluation: which codec it is."""


def decoder_of(dataset: Dataset, device: torch.device) -> Decoder:
    """What turns samples of a network that learned a data set into images; nothing where they are images already."""
    if not hasattr(dataset, "codec"):
        return Decoder(None, {})
    codec = dataset.codec(device)
    return Decoder(codec.decode, {"codec": codec.sha256})
