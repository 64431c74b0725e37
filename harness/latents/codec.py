"""What a codec is, and the door to it: frozen, from a local file, addressed by the content of its weights.

B  samples    C, *axes  of what it reads: (C, H, W) images, (C, F, H, W) videos, (1, n) waves    c, *places
of a latent
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from harness.config import registry
from harness.config.spec import DataSpec
from harness.data.dataset import Capabilities, Dataset, pictured
from harness.data.waveforms import as_mels
from harness.errors import UserError


class Moments(NamedTuple):
    """Of the posterior over latents, float32 (B, c, *places) each, not normalised; a codec without one has
    `std` 0."""

    mean: Tensor
    std: Tensor


class Affine(NamedTuple):
    """What a network learns of a latent z: (z - shift) * scale, one value for each channel, or one for
    all."""

    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    def normalised(self, latents: Tensor) -> Tensor:
        """Of latents (B, c, *places)."""
        if any(self.shift):
            latents = latents - _of_channels(self.shift, latents)
        return latents * _of_channels(self.scale, latents)

    def restored(self, latents: Tensor) -> Tensor:
        """The inverse."""
        latents = latents / _of_channels(self.scale, latents)
        return latents + _of_channels(self.shift, latents) if any(self.shift) else latents

    def to_json(self) -> dict[str, Any]:
        """One number where all channels have the same; no shift where there is none."""
        fields = {"scale": self.scale, **({"shift": self.shift} if any(self.shift) else {})}
        return {name: values[0] if len(values) == 1 else list(values) for name, values in fields.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Affine:
        found = (fields.get("shift", 0.0), fields["scale"])
        return cls(*(tuple(value) if isinstance(value, list) else (value,) for value in found))


class Codec(Protocol):
    """Made by its class as `cls(weights, device)`; `weights` is a local path, empty for a codec without any.

    The class itself has `address(path)`, the sha256 of weights at a path, and `outline(shape)`, `shape` as
    the published weights have it.
    """

    modalities: tuple[str, ...]
    """Of the data sets that it encodes."""
    rate: int | None
    """Samples a second of the waves that it reads; None where it reads samples as they are. Of a class: of
    the published weights."""
    sha256: str
    """Of its weights and configuration, 64 hex digits."""
    affine: Affine
    """From a draw of the posterior to the latent that a network learns."""

    def shape(self, of: tuple[int, ...]) -> tuple[int, ...]:
        """(c, *places) for samples (C, *axes); raises `UserError` for samples that it cannot take."""
        ...

    def encode(self, samples: Tensor) -> Moments:
        """Of samples (B, C, *axes) in [-1, 1]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Samples (B, C, *axes), about [-1, 1], of normalised latents (B, c, *places); waves may end
        later."""
        ...


def open_codec(name: str, weights: str, device: torch.device) -> Codec:
    """The codec `family` or `family@<digits>` with the weights at a path.

    Raises `UserError` for an unknown family, and for weights that are absent, damaged or not those of the
    digits.
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
    """The spec with a codec `family:PATH` named by its content, `family@<8 digits>`; the path goes to
    `data.codec_weights`, which is not hashed: the same weights at another place are the same run."""
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
    """Return what turns samples of a network into the pictures, videos or log-mel spectrograms that its
    metrics are computed on.

    Data sets without latents need no decoder.
    """
    opened = Capabilities(dataset).codec
    if opened is None:
        return Decoder(None, {})
    codec: Codec = opened(device)
    about = {"codec": codec.sha256}
    if codec.rate is None:
        return Decoder(codec.decode, about)
    rate, frames = codec.rate, pictured(dataset).shape[-1]
    return Decoder(lambda latents: as_mels(codec.decode(latents), rate, frames), about)


def _of_channels(values: tuple[float, ...], beside: Tensor) -> Tensor:
    return torch.tensor(values, device=beside.device).reshape(-1, *[1] * (beside.ndim - 2))
