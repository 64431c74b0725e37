"""Stored records as moments, and the check of their spread against a scale.

Shapes:  n  samples;  (copies, parts, c, *places)  a stored record;  parts  2 for moments, 1 for draws
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from harness.errors import UserError
from harness.latents.codec import Affine
from harness.latents.layouts.source import Holds

LOGVAR_RANGE = (-30.0, 20.0)
"""Limits of log-variances before they become standard deviations (LDM distributions.py, diffusers vae.py)."""
USUAL = (0.5, 2.0)
"""Standard deviations of latents that a scale fits; every published scale aims at 1."""
FITS_WELL = math.log(1.4)
"""Distance from unit spread, as a logarithm, below which two published scales are equally likely."""
SAMPLED = 256
"""Number of samples whose spread is measured."""


class Published(NamedTuple):
    """A published normalisation (z - shift) * scale."""

    name: str
    channels: int
    scale: float
    shift: float = 0.0


PUBLISHED = (
    Published("SD-VAE", 4, 0.18215),
    Published("U-ViT's SD-VAE", 4, 0.23010),
    Published("SDXL-VAE", 4, 0.13025),
    Published("MAR's KL-16", 16, 0.2325),
    Published("SD3's VAE", 16, 1.5305, 0.0609),
    Published("FLUX's VAE", 16, 0.3611, 0.1159),
    Published("DC-AE", 32, 0.41407),
)


def as_moments(stored: np.ndarray, holds: Holds) -> np.ndarray:
    """Return mean and standard deviation, float32 (2, c, *places), of a stored record (parts, c, *places)."""
    moments = np.asarray(stored, dtype=np.float32)
    if holds == "sample":
        return np.concatenate([moments, np.zeros_like(moments)])
    if holds == "logvar":
        return np.stack([moments[0], np.exp(0.5 * np.clip(moments[1], *LOGVAR_RANGE))])
    return moments


class Spread(NamedTuple):
    """Mean and standard deviation of drawn latents, for each channel and over all."""

    mean_c: np.ndarray
    std_c: np.ndarray

    @property
    def std(self) -> float:
        """Standard deviation over all channels."""
        return math.sqrt(float(np.mean(self.std_c**2 + self.mean_c**2) - np.mean(self.mean_c) ** 2))

    def normalised(self, affine: Affine) -> Spread:
        """Return the spread of normalised latents."""
        scale = np.abs(np.broadcast_to(affine.scale, self.std_c.shape))
        return Spread(
            (self.mean_c - np.broadcast_to(affine.shift, self.mean_c.shape)) * scale, self.std_c * scale
        )


def spread_of(records: np.ndarray, holds: Holds) -> Spread:
    """Return the spread of draws from records (n, copies, parts, c, *places), without drawing.

    The variance of a draw is that of the mean plus the mean variance of the posterior.
    """
    moments = np.stack([as_moments(copy, holds) for record in records for copy in record])
    flat = moments.astype(np.float64).reshape(*moments.shape[:3], -1)
    mean, std = flat[:, 0], flat[:, 1]
    return Spread(mean.mean((0, 2)), np.sqrt(mean.var((0, 2)) + (std**2).mean((0, 2))))


def check_holds(records: np.ndarray, holds: Holds, where: str) -> None:
    """Raise `UserError` if the second half of records cannot be what it is declared as."""
    if holds == "sample":
        return
    second = records[:, :, 1]
    if holds == "std" and second.min() < 0:
        raise UserError(
            f"{where}: the second half of the channels is negative (least {second.min():.3g}), so it does "
            "not hold standard deviations; add --holds logvar for log-variances, or --holds sample for draws"
        )
    # A log-variance of a trained autoencoder is negative: its posterior is narrower than 1.
    if holds == "logvar" and second.min() >= 0:
        raise UserError(
            f"{where}: the second half of the channels is nowhere negative (least {second.min():.3g}), so it "
            "does not hold log-variances; add --holds std for standard deviations"
        )


def check_spread(stored: Spread, affine: Affine, where: str, stored_scale: float) -> None:
    """Raise `UserError` with the likely scale if normalised latents are not of about unit spread."""
    found, (low, high) = stored.normalised(affine), USUAL
    per_channel = len(affine.scale) > 1
    stds = found.std_c if per_channel else np.array([found.std])
    wrong = np.flatnonzero(~((stds >= low) & (stds <= high)))
    if len(wrong):
        channel = f" of channel {wrong[0]}" if per_channel else ""
        raise UserError(
            f"{where}: the latents' standard deviation{channel} is {stds[wrong[0]]:.3g} after "
            f"{_described(affine)}, expected {low:g} to {high:g}; stored, it is {stored.std:.3g}, so "
            f"{_advice(stored, stored_scale)}; or keep it with --any-scale"
        )
    off = np.flatnonzero(np.abs(found.mean_c) > 1)
    if per_channel and len(off):
        raise UserError(
            f"{where}: the latents' mean of channel {off[0]} is {found.mean_c[off[0]]:.3g} after "
            f"{_described(affine)}, expected about 0; give the statistics of these latents, or keep them "
            "with --any-scale"
        )


def likely(stored: Spread) -> Published | None:
    """Return the first published normalisation with these channels that fits well, else the closest one."""
    fitting = [one for one in PUBLISHED if one.channels == len(stored.std_c) and stored.std > 0]
    fitting = [one for one in fitting if USUAL[0] <= stored.std * one.scale <= USUAL[1]]
    return min(fitting, key=lambda one: max(abs(math.log(stored.std * one.scale)), FITS_WELL), default=None)


def _advice(stored: Spread, stored_scale: float) -> str:
    if not math.isfinite(stored.std) or stored.std < 1e-6:
        return "they are constant: check what was encoded"
    # Raw latents of an autoencoder with a published scale, or any others far from 1.
    found = likely(stored)
    usual = USUAL[0] <= stored.std <= USUAL[1]
    if usual and stored_scale == 1:
        factors = ", ".join(
            f"{one.scale:g} for {one.name}" for one in PUBLISHED if one.channels == len(stored.std_c)
        )
        known = f" ({factors})" if factors else ""
        return f"they seem to be scaled already: add --stored-scale FACTOR{known}, or --scale 1"
    if found is not None:
        shift = f" --shift {found.shift:g}" if found.shift else ""
        return f"the scale is likely {found.scale:g} ({found.name}): add --scale {found.scale:g}{shift}"
    return f"a scale of {1 / stored.std:.3g} would fit: add --scale {1 / stored.std:.3g}"


def _described(affine: Affine) -> str:
    if len(affine.scale) > 1:
        return "normalisation by mean and standard deviation"
    shift = f" and shift {affine.shift[0]:g}" if any(affine.shift) else ""
    return f"scale {max(affine.scale):g}{shift}"
