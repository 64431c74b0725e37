"""Small autoencoders with random weights in the libraries' layouts, and images for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch


def save_vae(folder: Path, seed: int = 0, channels: int = 3, blocks: int = 2, **changed: object) -> Path:
    """Save an image autoencoder that halves the sides, once less than it has blocks, and has four latent
    channels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks,
        norm_num_groups=4,
        sample_size=8,
        **{"scaling_factor": 0.18215} | changed,
    )
    vae.save_pretrained(folder)
    return folder


def save_wan(folder: Path, channels: int = 1, patch: int | None = None, **changed: object) -> Path:
    """Save a video autoencoder with three latent channels.

    It divides the sides by four, or by eight with a patch of two as in Wan 2.2.
    """
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    wan = AutoencoderKLWan(
        **{
            "base_dim": 4,
            "z_dim": 3,
            "dim_mult": [1, 1, 1],
            "num_res_blocks": 1,
            "temperal_downsample": [True, True],
            "in_channels": channels * (patch or 1) ** 2,
            "out_channels": channels * (patch or 1) ** 2,
            "patch_size": patch,
            "is_residual": patch is not None,
            "latents_mean": [0.1, -0.2, 0.3],
            "latents_std": [0.5, 1.0, 2.0],
        }
        | changed
    )
    wan.save_pretrained(folder)
    return folder


def save_oobleck(folder: Path, rate: int = 16_000, ratios: tuple[int, ...] = (4, 8, 10)) -> Path:
    """Save an autoencoder of stereo waveforms with four latent channels and a frame every 320 samples."""
    from diffusers import AutoencoderOobleck

    torch.manual_seed(0)
    oobleck = AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=list(ratios),
        channel_multiples=[1] * len(ratios),
        decoder_channels=8,
        decoder_input_channels=4,
        audio_channels=2,
        sampling_rate=rate,
    )
    oobleck.save_pretrained(folder)
    return folder


def save_dac(folder: Path, ratios: tuple[int, ...] = (2, 4, 5)) -> Path:
    """Save an autoencoder of waveforms at 16 kHz, with 32 latent channels, a frame every 40 samples and no
    posterior."""
    from transformers import DacConfig, DacModel

    torch.manual_seed(0)
    config = DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=ratios,
        decoder_hidden_size=16,
        n_codebooks=2,
        codebook_size=16,
        codebook_dim=4,
        sampling_rate=16_000,
    )
    DacModel(config).save_pretrained(folder)
    return folder


def save_rae(folder: Path) -> Path:
    """Save a representation autoencoder of images 8x8, with 64 latent channels on a grid of 2x2 and
    statistics for each channel and place."""
    from diffusers import AutoencoderRAE

    torch.manual_seed(0)
    rae = AutoencoderRAE(
        encoder_type="mae",
        encoder_hidden_size=64,
        encoder_patch_size=4,
        encoder_num_hidden_layers=1,
        encoder_input_size=8,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        patch_size=4,
        latents_mean=torch.randn(64, 2, 2),
        latents_std=torch.rand(64, 2, 2) + 0.5,
    )
    rae.save_pretrained(folder)
    return folder


def save_images(file: Path, count: int = 20, side: int = 8) -> Path:
    """Save random colour images of three classes as an npz."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    np.savez(file, images=x, labels=np.arange(count) % 3)
    return file
