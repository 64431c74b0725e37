"""The interface of codecs, which are frozen, local and identified by the content of their weights.

Shapes:  B  samples;  C, *axes  (C, H, W) images, (C, F, H, W) videos, (1, n) waveforms;  c, *places  latents
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from harness.config import registry
from harness.config.data_spec import DataSpec
from harness.data.dataset import Capabilities, Dataset, pictured
from harness.data.waveforms import log_mels
from harness.errors import UserError


class Moments(NamedTuple):
    """The posterior over latents, float32 (B, c, *places) each, not normalised; `std` is 0 without a
    posterior."""

    mean: Tensor
    std: Tensor


class Affine(NamedTuple):
    """The normalisation (z - shift) * scale of a latent z, with one value per channel or one for all."""

    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    def normalised(self, latents: Tensor) -> Tensor:
        """Normalise latents (B, c, *places)."""
        if any(self.shift):
            latents = latents - _per_channel(self.shift, latents)
        return latents * _per_channel(self.scale, latents)

    def restored(self, latents: Tensor) -> Tensor:
        """Undo the normalisation of latents (B, c, *places)."""
        latents = latents / _per_channel(self.scale, latents)
        return latents + _per_channel(self.shift, latents) if any(self.shift) else latents

    def to_json(self) -> dict[str, Any]:
        """Return the fields of a manifest: a number instead of a list of one, and no shift if it is 0."""
        fields = {"scale": self.scale, **({"shift": self.shift} if any(self.shift) else {})}
        return {name: values[0] if len(values) == 1 else list(values) for name, values in fields.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Affine:
        values = (fields.get("shift", 0.0), fields["scale"])
        return cls(*(tuple(value) if isinstance(value, list) else (value,) for value in values))


class Codec(Protocol):
    """A codec, constructed as `cls(weights, device)` with a local path, "" for a codec without weights.

    The class also has `address(path)`, which returns the sha256 of the weights at a path, and
    `outline(shape)`, which is `shape` under the published weights. Two members are optional.
    `outline_at(path, shape)` is `shape` under the weights at a path. `deterministic` is True for a codec
    without a posterior, whose latents are stored without a standard deviation.
    """

    modalities: tuple[str, ...]
    """Modalities of the data sets that it encodes."""
    rate: int | None
    """Sampling rate of the waveforms that it encodes, None if it encodes samples directly. The class has the
    rate of the published weights."""
    sha256: str
    """Hash of weights and configuration, 64 hex digits."""
    affine: Affine
    """The normalisation from a draw of the posterior to the latent that a run learns."""

    def shape(self, of: tuple[int, ...]) -> tuple[int, ...]:
        """Return (c, *places) for samples (C, *axes). Raises `UserError` for samples it cannot encode."""
        ...

    def encode(self, samples: Tensor) -> Moments:
        """Return the posterior of samples (B, C, *axes) in [-1, 1]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return samples (B, C, *axes) of about [-1, 1] from normalised latents (B, c, *places). Waveforms
        may be longer than the encoded ones."""
        ...


class Renormalised:
    """A codec whose latents are normalised in another way than in its configuration."""

    def __init__(self, codec: Codec, affine: Affine) -> None:
        self._codec, self.affine = codec, affine
        self.modalities, self.rate, self.sha256 = codec.modalities, codec.rate, codec.sha256

    def shape(self, of: tuple[int, ...]) -> tuple[int, ...]:
        return self._codec.shape(of)

    def encode(self, samples: Tensor) -> Moments:
        return self._codec.encode(samples)

    def decode(self, latents: Tensor) -> Tensor:
        return self._codec.decode(self._codec.affine.normalised(self.affine.restored(latents.float())))


def open_codec(name: str, weights: str, device: torch.device) -> Codec:
    """Return the codec `family` or `family@<digits>` with the weights at a path.

    Raises `UserError` for an unknown family, and for weights that are missing, damaged or do not match the
    digits.
    """
    family, _, digits = name.partition("@")
    codec = registry.load("codec", family)(weights, device)
    if not codec.sha256.startswith(digits):
        raise UserError(
            f"codec '{name}': the weights in {weights} are {family}@{codec.sha256[:8]}; "
            "set data.codec_weights to the folder of the right ones"
        )
    return codec


def addressed(spec: DataSpec) -> DataSpec:
    """Return the spec with a codec `family:PATH` replaced by `family@<8 digits>` of its content.

    The path moves to `data.codec_weights`, which is not hashed, so the run id does not depend on where the
    weights are stored.
    """
    if spec.codec and spec.name != "latents":
        raise UserError(
            f"data.codec = '{spec.codec}' decodes latents, and data.name = '{spec.name}' has none; "
            "create them with flowrace data encode, then set data.name=latents"
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
    """Fields of the evaluation protocol that identify the codec."""
    undecoded: str = ""
    """The reason why latents cannot be decoded, empty if they can."""


def decoder_of(dataset: Dataset, device: torch.device) -> Decoder:
    """Return the decoder from generated latents to the images, videos or log-mel spectrograms that metrics
    read. Its function is None for data sets without latents, and for latents without a codec."""
    able = Capabilities(dataset)
    open_it = able.codec
    if open_it is None or able.undecoded:
        return Decoder(None, {}, able.undecoded)
    codec: Codec = open_it(device)
    about = {"codec": codec.sha256}
    if codec.rate is None:
        return Decoder(codec.decode, about)
    rate, frames = codec.rate, pictured(dataset).shape[-1]
    return Decoder(lambda latents: log_mels(codec.decode(latents), rate, frames), about)


def _per_channel(values: tuple[float, ...], latents: Tensor) -> Tensor:
    """Return values shaped to broadcast over the channels of latents (B, c, *places)."""
    return torch.tensor(values, device=latents.device).reshape(-1, *[1] * (latents.ndim - 2))
