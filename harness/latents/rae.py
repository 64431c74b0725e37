"""Representation autoencoders: normalised features of a frozen encoder as latents, and a ViT that decodes.

    z = (f(x) - mean) / std    for each channel and place    (RAE, arXiv 2510.11690; bytetriper/RAE a4d18c4)

config.json of the folder states which of two kinds it is:

    AutoencoderRAE    released weights in diffusers' layout, with DINOv2, SigLIP 2 or MAE in the same file
    FlowraceRAE       an encoder of timm, open_clip, local or random, and a decoder of `flowrace data rae`

The released model.pt and stat.pt are pickled and not read; their authors publish the same weights in
diffusers' layout. There is no posterior, so one value is stored for each value of a latent.
Ours: the release drops scale and shift of the encoder's last norm. The statistics undo both, up to the sign.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from harness.errors import UserError
from harness.files.parse import parse_json
from harness.latents import rae_folder
from harness.latents.codec import Affine, Moments
from harness.latents.pretrained import CONFIG, Pretrained
from harness.latents.rae_folder import MODEL, StoredRae, is_trained

RELEASED = Pretrained("rae", "diffusers", "AutoencoderRAE", "nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08")
CHANNELS, FACTOR = 768, 16
"""Channels and downsampling factor of the published DINOv2-B: 16x16x768 for 256x256 pixels."""
PICKLED = (".pt", ".pth", ".bin", ".ckpt")


class _Kind(Protocol):
    """A representation autoencoder of either kind, with images in [-1, 1] and normalised latents."""

    @property
    def pixels(self) -> tuple[int, ...]: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class Rae:
    """For images: features of a frozen encoder that a ViT decodes, from diffusers' AutoencoderRAE (sides /
    16, 768 channels) or trained by `flowrace data rae`.

    Latents are normalised by the folder's statistics for each channel and place.
    """

    modalities, rate = ("image",), None
    affine = Affine()
    deterministic = True

    def __init__(self, weights: str, device: torch.device) -> None:
        folder = Path(weights)
        self.sha256 = self.address(folder)
        self._latent = _latent_shape(folder)
        kind = StoredRae if is_trained(folder) else _Released
        self._kind: _Kind = kind(folder, device)

    @classmethod
    def address(cls, path: Path) -> str:
        """Return the sha256 over configuration and weights. Raises `UserError` if a file is missing."""
        cls.check_weights(path)
        return rae_folder.address(path) if is_trained(path) else RELEASED.address(path)

    @classmethod
    def check_weights(cls, path: Path) -> None:
        """Raise `UserError` if a file of the folder is missing, and for pickled weights."""
        if path.suffix in PICKLED or (path.is_dir() and not (path / CONFIG).exists() and _pickled(path)):
            raise UserError(
                f"codec 'rae': {path} holds pickled weights, which are not read; the same decoders in "
                f"safetensors are, for example, in {RELEASED.example}: write rae:FOLDER"
            )
        if not is_trained(path):
            RELEASED.check(path)
        for name in (CONFIG, MODEL) if is_trained(path) else ():
            if not (path / name).is_file():
                raise UserError(f"codec 'rae': {path} has no {name}; train it again with flowrace data rae")

    @staticmethod
    def outline(of: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the latents under the published weights."""
        return CHANNELS, of[1] // FACTOR, of[2] // FACTOR

    @classmethod
    def outline_at(cls, path: Path, of: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the latents under the weights of a folder, else under the published ones."""
        return _latent_shape(path) if (path / CONFIG).is_file() else cls.outline(of)

    def shape(self, of: tuple[int, ...]) -> tuple[int, ...]:
        channels, *side = self._kind.pixels
        if of[0] != channels:
            raise UserError(
                f"codec 'rae' needs {channels} channels, but the samples have {of[0]}; "
                f"set data.channels={channels}"
            )
        if tuple(of[1:]) != tuple(side):
            raise UserError(
                f"codec 'rae' needs {side[1]}x{side[0]} pixels, but the samples are {of[2]}x{of[1]}; "
                f"set data.resolution={side[0]}"
            )
        return self._latent

    @torch.no_grad()
    def encode(self, samples: Tensor) -> Moments:
        mean = self._kind.encode(samples)
        return Moments(mean, torch.zeros_like(mean))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self._kind.decode(latents.float())


class _Released:
    """diffusers' AutoencoderRAE, whose images are in [0, 1]."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        if find_spec("transformers") is None:
            raise UserError(
                "codec 'rae' needs transformers, for the encoder: pip install 'flowrace[latents]'"
            )
        self._network = RELEASED.load(folder, device)
        config, side = self._network.config, self._network.decoder_image_size
        if not config.reshape_to_2d:
            raise UserError(f"codec 'rae': {folder} has reshape_to_2d = false; expected latents on a grid")
        self.pixels = (config.num_channels, side, side)

    def encode(self, images: Tensor) -> Tensor:
        return self._network.encode((images + 1) / 2).latent

    def decode(self, latents: Tensor) -> Tensor:
        return self._network.decode(latents).sample * 2 - 1


def _latent_shape(folder: Path) -> tuple[int, ...]:
    """Return the shape of latents that a folder's configuration states."""
    if is_trained(folder):
        return StoredRae.latent_shape(folder)
    try:
        config = parse_json((folder / CONFIG).read_bytes())
        given = {name: int(config.get(name, default)) for name, default in _DEFAULTS.items()}
        side = given["encoder_input_size"] // given["encoder_patch_size"]
    except (OSError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"codec 'rae': {folder} does not hold a complete {RELEASED.network}: its {CONFIG} states no shape"
        ) from error
    return given["encoder_hidden_size"], side, side


_DEFAULTS = {"encoder_hidden_size": CHANNELS, "encoder_input_size": 224, "encoder_patch_size": 14}
"""Defaults of diffusers' configuration."""


def _pickled(folder: Path) -> bool:
    return any(file.suffix in PICKLED for file in folder.iterdir())
