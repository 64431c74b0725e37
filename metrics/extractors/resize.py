"""Pixels as the published vision transformers take them: resized, then the mean and deviation of their
training."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Pixels(NamedTuple):
    """What happens to bytes (B, 3, H, W) before a network sees them."""

    size: tuple[int, int]
    """Height and width, by Pillow's resampling with antialias."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mode: str = "bicubic"
    square: bool = False
    """Whether the centre square is cut out first; else images of another shape are stretched."""

    @property
    def words(self) -> str:
        height, width = self.size
        cut = "centre square, " if self.square else ""
        numbers = " ".join(f"{x:.4g}" for x in (*self.mean, *self.std))
        how = f"{self.mode} with antialias, rounded to bytes"
        return f"{cut}{height}x{width} {how}; / 255, mean and deviation {numbers}"

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 -> float32 (B, 3, *size)."""
        x = resize((centre(images) if self.square else images).float(), self.size, self.mode)
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x / 255 - mean) / std


def centre(images: Tensor) -> Tensor:
    """(B, C, H, W) -> its centre square; of an odd number of lines too many the larger half goes from the
    end."""
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Bytes as floats (B, C, H, W) -> the same at another size.

    As Pillow does it, to within its fixed-point arithmetic: rows first, then columns, each to bytes.
    """
    for step in ((x.shape[2], size[1]), size):
        if x.shape[2:] != step:
            x = F.interpolate(x, step, mode=mode, antialias=True, align_corners=False)
            x = (x + 0.5).floor().clamp(0, 255)  # halves go up, as in Pillow
    return x
