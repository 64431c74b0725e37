"""The identity codec, whose latents are the samples themselves."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import UserError
from harness.latents.codec import Affine, Moments


class Identity:
    """For images, videos and log-mel spectrograms: latents are the samples themselves.

    The standard deviation is 0 and the scale is 1.
    """

    modalities, rate = ("image", "video", "audio"), None
    affine = Affine()
    sha256 = hashlib.sha256(b"identity").hexdigest()

    def __init__(self, weights: str, device: torch.device) -> None:
        if weights:
            raise UserError(f"codec 'identity' has no weights, but got {weights}; leave it out")

    @classmethod
    def address(cls, path: Path) -> str:
        raise UserError(f"codec 'identity' has no weights: write identity, not identity:{path}")

    @staticmethod
    def outline(of: tuple[int, ...]) -> tuple[int, ...]:
        return of

    def shape(self, of: tuple[int, ...]) -> tuple[int, ...]:
        return of

    def encode(self, samples: Tensor) -> Moments:
        return Moments(samples, torch.zeros_like(samples))

    def decode(self, latents: Tensor) -> Tensor:
        return latents
