"""The output of a network: the velocity, or the clean sample, from which the velocity follows.

x-prediction with velocity loss is JiT's choice ("Back to Basics: Let Denoising Generative Models Denoise",
Li & He, arXiv 2511.13720, Algorithms 1 and 2). JiT counts time from noise to data, z = t x + (1 - t) e, and
divides by max(1 - t, 0.05). Its 1 - t is our t, where t = 1 is noise, and its velocity x - e is minus ours:

    v   = (x_t - x)  / max(t, 0.05)      x = the network's output
    v_t = (x_t - x0) / max(t, 0.05) = (eps - x0) t / max(t, 0.05)        the target, equally divided

So the loss on the velocity is || x - x0 ||^2 / max(t, 0.05)^2, and the best output is the clean sample at
every time. Samplers integrate v. Every token has the time that it has in x_t.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from harness.backbone.times import Times
from harness.backbone.tokens import Layout

PredictionKind = Literal["velocity", "x"]
SMALLEST_TIME = 0.05
"""The divisor below this time (`t_eps` in JiT)."""


def divisor(times: Times, layout: Layout) -> Tensor:
    """Return max(tau, 0.05), expanded from tokens to values, to broadcast against x."""
    return layout.spread(times.per_token_levels().clamp(min=SMALLEST_TIME))


def velocity_of_clean(clean: Tensor, x: Tensor, times: Times, layout: Layout) -> Tensor:
    """Return the velocity of a network that predicts clean samples, float32 like x (B, ...)."""
    return (x - clean) / divisor(times, layout)


def share_of_velocity(times: Times, layout: Layout) -> Tensor:
    """Return tau / max(tau, 0.05), the factor of eps - x0 in the target; 1 from time 0.05 on."""
    return layout.spread(times.per_token_levels()) / divisor(times, layout)
