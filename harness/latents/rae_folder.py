"""The folder of a representation autoencoder that `flowrace data rae` has trained.

config.json          encoder with its sha256, shapes and size of the decoder; written last
model.safetensors    decoder.*, latents.mean and latents.std (c, g, g), and encoder.* of a local encoder
encoder.*            the file of the encoder's weights, if one was given

Everything that a stranger's folder may state is bounded before a network is built.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Self, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from harness.backbone.sizes import Size, size_named
from harness.config import registry
from harness.data.dataset import Dataset
from harness.encoders.base import Choice, Encoder, EncoderChoice, parse_name
from harness.encoders.local import RandomEncoder, Vit
from harness.errors import UserError
from harness.files.names import check_name
from harness.files.parse import parse_json
from harness.latents.pretrained import CONFIG
from harness.latents.rae_decoder import Decoder
from harness.records import checkpoint
from metrics.files.hashing import file_sha256

CLASS, MODEL = "FlowraceRAE", "model.safetensors"
FAMILIES = ("timm", "open_clip", "local", "random")
"""Families of encoders of a codec: a name and a file of weights define them, and neither is code."""
REASONS = {
    "cached": "stores features of one data set only",
    "pca": "has axes of one data set, which the folder does not store",
    "run": "needs a run directory, which the folder does not store",
    "torchscript": "is code, which a codec's folder must not hold",
}
"""The reasons why other families have no place in a codec."""
MOST_VALUES = 2**16
"""Largest number of values in a patch of pixels."""
Side = Annotated[int, Field(ge=1, le=2**13)]


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class EncoderEntry(_Fields):
    """The frozen encoder."""

    name: str
    """`family:model`."""
    sha256: Annotated[str, Field(pattern="[0-9a-f]{64}")]
    file: str = ""
    """File of its weights in the folder, empty for weights in `model.safetensors` or on the hub."""


class RaeConfig(_Fields):
    """The content of config.json."""

    kind: Literal["FlowraceRAE"] = Field(alias="_class_name")
    encoder: EncoderEntry
    channels: Annotated[int, Field(ge=1, le=2**14)]
    """Width of a token."""
    grid: Annotated[int, Field(ge=1, le=2**8)]
    """Rows and columns of tokens."""
    pixels: tuple[Side, Side, Side]
    """(C, H, W) of the images."""
    classes: Annotated[int, Field(ge=1, le=2**17)]
    decoder: str
    """Size of the decoder: a name such as B, or DEPTHxWIDTHxHEADS."""
    training: dict[str, float] = {}
    """Settings of its training, for the reader."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if size_named(self.decoder) is None:
            raise ValueError(f"decoder = {self.decoder}: unknown size")
        if any(axis % self.grid for axis in self.pixels[1:]):
            raise ValueError(f"grid = {self.grid} does not divide the pixels {self.pixels[1:]}")
        if math.prod(self.pixels) // self.grid**2 > MOST_VALUES:
            raise ValueError(f"grid = {self.grid} gives patches of more than {MOST_VALUES} values")
        return self

    @property
    def size(self) -> Size:
        """Size of the decoder."""
        size = size_named(self.decoder)
        assert size is not None
        return size

    def to_json(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return self.model_dump(mode="json", by_alias=True)


def is_trained(folder: Path) -> bool:
    """Return whether a folder is one of `flowrace data rae`, perhaps a damaged one."""
    return (folder / MODEL).is_file() or _class_name(folder) == CLASS


def read_config(folder: Path) -> RaeConfig:
    """Read config.json. Raises `UserError` for one that lacks a field, or has one of another type."""
    try:
        found = parse_json((folder / CONFIG).read_bytes())
        # JSON has no tuples.
        return RaeConfig.model_validate({**found, "pixels": tuple(found["pixels"])})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or CONFIG
        raise _damaged(folder, f"{field}: {first['msg']}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(folder, str(error) or type(error).__name__) from error


def address(folder: Path) -> str:
    """Return the sha256 over configuration and weights, which include the encoder's by their sha256."""
    total = hashlib.sha256()
    for name in (CONFIG, MODEL):
        total.update(file_sha256(folder / name).encode())
    return total.hexdigest()


class StoredRae:
    """A trained folder: the encoder's features, normalised, and the decoder."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._config = config = read_config(folder)
        try:
            stored = checkpoint.load(folder / MODEL)
        except UserError as error:
            raise _damaged(folder, str(error)) from error
        self._decoder = _decoder(config, stored.part("decoder"), folder).to(device)
        shape = (config.channels, config.grid, config.grid)
        statistics = [stored.tensors.get(f"latents.{name}") for name in ("mean", "std")]
        if any(found is None or tuple(found.shape) != shape for found in statistics):
            raise _damaged(folder, f"latents.mean and latents.std must have the shape {shape}")
        self._mean, self._std = (cast(Tensor, found).to(device) for found in statistics)
        self._encoder = stored_encoder(config, folder, stored.part("encoder"), device)
        if self._encoder.dim != config.channels:
            raise _damaged(folder, f"channels = {config.channels}, but the encoder has {self._encoder.dim}")

    @property
    def pixels(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""
        return self._config.pixels

    @staticmethod
    def latent_shape(folder: Path) -> tuple[int, ...]:
        """Return (c, g, g) of latents, from the configuration alone."""
        config = read_config(folder)
        return config.channels, config.grid, config.grid

    def encode(self, images: Tensor) -> Tensor:
        return (maps(self._encoder, images) - self._mean) / self._std

    def decode(self, latents: Tensor) -> Tensor:
        return self._decoder(latents)


def maps(encoder: Encoder, images: Tensor) -> Tensor:
    """Return features as maps (B, c, g, g) of images (B, C, H, W)."""
    return encoder.features(images).transpose(1, 2).unflatten(2, encoder.grid)


def check_encoder(name: str) -> None:
    """Raise `UserError` for an encoder that has no place in a codec."""
    family = parse_name(name)[0]
    if family not in FAMILIES:
        reason = REASONS.get(family, "is of another family")
        raise UserError(f"codec 'rae': encoder '{name}' {reason}; choose one of {', '.join(FAMILIES)}")


def stored_encoder(
    config: RaeConfig, folder: Path, weights: dict[str, Tensor], device: torch.device
) -> Encoder:
    """Return the frozen encoder of a folder. Raises `UserError` for other weights than it was made with."""
    entry = config.encoder
    check_encoder(entry.name)
    file = str(folder / check_name(entry.file, f"{folder}: encoder.file")) if entry.file else ""
    choice, outline = Choice(entry.name, file), _outline(config)
    family, grid = parse_name(entry.name)[0], (config.grid, config.grid)
    if family == "local":
        encoder: Encoder = _Stored(choice, outline, weights, grid=grid, device=device)
    else:
        cls = registry.load("encoder", family)
        encoder = cls(choice, outline, grid=grid, held_out=0.0, device=device)
    if encoder.sha256 != entry.sha256:
        raise UserError(
            f"codec 'rae': {folder} was made with encoder '{entry.name}' of sha256 {entry.sha256[:8]}, but "
            f"the weights here are {encoder.sha256[:8]}; copy the folder again"
        )
    return encoder


class _Stored(RandomEncoder):
    """The network of `local:<size>` with weights of a file, which needs no data set."""

    def __init__(
        self,
        choice: EncoderChoice,
        outline: Dataset,
        weights: dict[str, Tensor],
        *,
        grid: tuple[int, ...],
        device: torch.device,
    ) -> None:
        self._weights = weights
        super().__init__(choice, outline, grid=grid, held_out=0.0, device=device)

    def _prepare(
        self, network: Vit, model: str, dataset: Dataset, held_out: float, device: torch.device
    ) -> None:
        try:
            network.load_state_dict(self._weights)
        except RuntimeError as error:
            raise UserError(
                f"codec 'rae': {MODEL} does not hold the weights of '{self.name}'; train it again"
            ) from error


def _outline(config: RaeConfig) -> Dataset:
    """Return the shape and the classes of the images, all that a frozen encoder reads of a data set."""
    return cast(Dataset, SimpleNamespace(shape=config.pixels, classes=config.classes, modality="image"))


def _decoder(config: RaeConfig, tensors: dict[str, Tensor], folder: Path) -> Decoder:
    # Each block has tensors, so their number bounds the depth before anything is built.
    if config.size.depth > len(tensors):
        raise _damaged(folder, f"decoder = {config.decoder} has more blocks than {MODEL} has tensors")
    with torch.device("meta"):
        decoder = Decoder(config.size, config.channels, config.grid, config.pixels)
    try:
        # Assigned, so that the memory is that of the file whatever the configuration states.
        decoder.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise _damaged(folder, f"{MODEL} does not fit decoder = {config.decoder}") from error
    return decoder.float().requires_grad_(False).eval()


def _class_name(folder: Path) -> str:
    try:
        config = parse_json((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return ""
    return str(config.get("_class_name", "")) if isinstance(config, dict) else ""


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(
        f"codec 'rae': {folder} does not hold a complete {CLASS}: {reason.splitlines()[0]}; train it again "
        "with flowrace data rae"
    )
