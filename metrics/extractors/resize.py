"""Image preprocessing of published networks: resizing, then normalisation by their training's statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Pixels(NamedTuple):
    """The preprocessing of bytes (B, 3, H, W) for a network."""

    size: tuple[int, int]
    """Height and width after resampling with Pillow's antialias."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mode: str = "bicubic"
    square: bool = False
    """True if the centre square is cut out first; otherwise images of another shape are stretched."""

    @property
    def words(self) -> str:
        """Description of the preprocessing, as recorded with a metric."""
        height, width = self.size
        cut = "centre square, " if self.square else ""
        numbers = " ".join(f"{x:.4g}" for x in (*self.mean, *self.std))
        how = f"{self.mode} with antialias, rounded to bytes"
        return f"{cut}{height}x{width} {how}; / 255, mean and deviation {numbers}"

    def prepare(self, images: Tensor) -> Tensor:
        """Return the network's input, float32 (B, 3, *size), for images uint8."""
        x = resize((centre(images) if self.square else images).float(), self.size, self.mode)
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x / 255 - mean) / std


def centre(images: Tensor) -> Tensor:
    """Return the centre square of images (B, C, H, W).

    If the surplus is odd, one line more is cut from the end.
    """
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Return bytes stored as floats (B, C, H, W), resized.

    The result is Pillow's up to its fixed-point arithmetic: first along rows, then along columns, rounded to
    bytes after each.
    """
    for step in ((x.shape[2], size[1]), size):
        if x.shape[2:] != step:
            x = F.interpolate(x, step, mode=mode, antialias=True, align_corners=False)
            # Halves are rounded up, as in Pillow.
            x = (x + 0.5).floor().clamp(0, 255)
    return x
