"""The weight of the flow loss at each time, for every token at its own time.

none            L = || v - v_t ||^2, as SiT, REPA and Self-Flow
min_snr         L = min(SNR, gamma) || x - x0 ||^2                  SNR = ((1 - t) / t)^2
log_variance    L = exp(-u(t)) || v - v_t ||^2 + u(t)               u is learned

min_snr is that of Hang et al. (arXiv 2303.09556, TiankaiHang/Min-SNR-Diffusion-Training 1cadf45), with their
gamma of 5. Their loss is on the clean sample. The conversion to velocity is ours, because their
min(SNR, gamma) / (SNR + 1) holds for a variance-preserving path. On the linear path x_t - x = t v, so that
|| x - x0 ||^2 = t^2 || v - v_t ||^2, or max(t, 0.05)^2 || v - v_t ||^2 for x-prediction.

log_variance is the uncertainty of EDM2 (arXiv 2312.02696, Eq. 14-16 and 21; NVlabs/edm2 d8299d3): u is one
linear layer over 128 Fourier features of ln(sigma) / 4. Where u is best, exp(u) is the loss at that time, so
every time counts equally. Its layer is trained by the optimizer and saved with the method. It has no EMA,
because samplers do not use it.
Ours: sigma is the path's t / (1 - t), up to the times 1e-4 and 1 - 1e-4. Frequencies and phases are evenly
spaced quantiles of EDM2's distributions instead of draws. Weights start at zero, hence u at 0, and are not
normalised.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harness.backbone.config import BackboneConfig
from harness.backbone.prediction import SMALLEST_TIME
from harness.backbone.times import Times
from harness.config.training_spec import FlowSpec

FEATURES = 128
NEAREST_END = 1e-4
"""The distance of the nearest time to 0 and 1 that has separate features."""


class Weights(NamedTuple):
    """The factor of each squared error and what is added to it; both broadcast against x."""

    factor: Tensor
    offset: Tensor | None = None

    def of(self, squares: Tensor) -> Tensor:
        """Return the weighted squared errors, shaped like x."""
        weighted = self.factor * squares
        return weighted if self.offset is None else weighted + self.offset

    def fixed(self) -> Weights:
        """Return the factor alone and without gradient, for an error that u(t) shall not fit."""
        return Weights(self.factor.detach())


class LogVariance(nn.Module):
    """u(t), the learned logarithm of the loss at a time."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self) -> None:
        super().__init__()
        place = (torch.arange(FEATURES) + 0.5) / FEATURES
        golden = (math.sqrt(5) - 1) / 2
        # Phases in an order that is unrelated to that of the frequencies.
        turns = (golden * torch.arange(FEATURES, dtype=torch.float64)) % 1
        self.register_buffer("frequencies", 2 * math.pi * torch.special.ndtri(place), persistent=False)
        self.register_buffer("phases", (2 * math.pi * turns).float(), persistent=False)
        self.weight = nn.Parameter(torch.zeros(FEATURES))

    def forward(self, t: Tensor) -> Tensor:
        """Return u (...) of times t (...), float32 whatever the autocast type."""
        noise_level = torch.logit(t.float(), NEAREST_END) / 4
        features = math.sqrt(2) * torch.cos(noise_level[..., None] * self.frequencies + self.phases)
        return (features * self.weight).sum(dim=-1)


def weights_at(
    times: Times, backbone: BackboneConfig, flow: FlowSpec, log_variance: LogVariance | None
) -> Weights | None:
    """Return the weights of the flow loss at the times of a batch; None for a loss without weights."""
    if flow.weighting == "none":
        return None
    tau = times.per_token_levels()
    if flow.weighting == "min_snr":
        divided_by = tau if backbone.prediction == "velocity" else tau.clamp(min=SMALLEST_TIME)
        snr = ((1 - tau) / tau).square()
        return Weights(backbone.spread(snr.clamp(max=flow.gamma) * divided_by.square()))
    assert log_variance is not None
    u = log_variance(tau)
    return Weights(backbone.spread(torch.exp(-u)), backbone.spread(u))
