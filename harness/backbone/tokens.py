"""Images to tokens and back, and the frozen position code.

B  samples    C, H, W  channels and pixels    p  patch    T = (H/p)(W/p)  tokens in row-major order    D  features
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def patchify(x_BCHW: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, T, C p p); a token's values are ordered (channel, row, column)."""
    B, C, H, W = x_BCHW.shape
    cells = x_BCHW.reshape(B, C, H // patch, patch, W // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, C * patch * patch)


def unpatchify(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """(B, T, p p C) -> (B, C, H, W); a token's values are ordered (row, column, channel), as SiT's final layer has them."""
    rows, columns = height // patch, width // patch
    cells = tokens.reshape(tokens.shape[0], rows, columns, patch, patch, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], -1, height, width)


def per_pixel(values_BT: Tensor, patch: int, height: int, width: int) -> Tensor:
    """A value for each token -> for each pixel of its patch, (B, 1, H, W); (B, 1) stays one value per sample."""
    if values_BT.shape[1] == 1:
        return values_BT[:, :, None, None]
    grid = values_BT.reshape(-1, 1, height // patch, width // patch)
    return grid.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)


def sincos_2d(width: int, rows: int, columns: int) -> Tensor:
    """Sine-cosine position code, (1, T, width): first half for the column, second for the row (MAE's, as in DiT and SiT)."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    code = np.concatenate([_sincos_1d(width // 2, column), _sincos_1d(width // 2, row)], axis=1)
    return torch.from_numpy(code).float()[None]


def _sincos_1d(width: int, position: np.ndarray) -> np.ndarray:
    frequency = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width / 2))
    angle = position[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
