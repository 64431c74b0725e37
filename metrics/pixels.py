"""Pixels as the published vision transformers take them: resized, then the mean and deviation of their training."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Pixels(NamedTuple):
    """What happens to bytes (B, 3, H, W) before a network sees them."""

    size: tuple[int, int]
    """Height and width; images of another shape are stretched."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mode: str = "bicubic"
    antialias: bool = True
    """As Pillow resizes, to bytes again; without, as torch does, in floating point."""

    @property
    def words(self) -> str:
        height, width = self.size
        how = "with antialias, rounded to bytes" if self.antialias else "without antialias"
        numbers = " ".join(f"{x:.4g}" for x in (*self.mean, *self.std))
        return f"{height}x{width} {self.mode} {how}; / 255, mean and deviation {numbers}"

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 -> float32 (B, 3, *size)."""
        x = resize(images.float(), self.size, self.mode, self.antialias)
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x / 255 - mean) / std


def resize(x: Tensor, size: tuple[int, int], mode: str, antialias: bool) -> Tensor:
    """Bytes as floats (B, C, H, W) -> the same at another size.

    With `antialias` as Pillow does it, to within its fixed-point arithmetic: rows first, then columns, each to bytes.
    """
    if not antialias:
        return F.interpolate(x, size, mode=mode, align_corners=False)
    for step in ((x.shape[2], size[1]), size):
        if x.shape[2:] != step:
            x = F.interpolate(x, step, mode=mode, antialias=True, align_corners=False)
            x = (x + 0.5).floor().clamp(0, 255)  # halves go up, as in Pillow
    return x
