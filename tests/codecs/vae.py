"""A small autoencoder with random weights, in diffusers' layout, and images that it can take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch


def save_vae(folder: Path, seed: int = 0, channels: int = 3) -> Path:
    """Halves the sides; four channels of latents."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=8,
        scaling_factor=0.18215,
    )
    vae.save_pretrained(folder)
    return folder


def save_images(file: Path, count: int = 20, side: int = 8) -> Path:
    """Colour images of noise with three classes, as an npz."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    np.savez(file, images=x, labels=np.arange(count) % 3)
    return file
