"""The linear path from data to noise, and the distribution of training times on it.

    x_tau = (1 - tau) x0 + tau eps        velocity target: d x / d tau = eps - x0        tau = 1 is noise

tau may differ between tokens (Self-Flow Eq. 5, arXiv 2603.06507).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness.backbone.config import BackboneConfig
from harness.backbone.prediction import share_of_velocity
from harness.backbone.times import Times
from harness.backbone.tokens import Layout
from harness.config.training_spec import TimeSpec
from harness.runtime.random_streams import Streams


def sample_times(
    p: TimeSpec, streams: Streams, stream: str, indices: np.ndarray, shape: tuple[int, ...] = ()
) -> Tensor:
    """Return t ~ p(t) in [0, 1] for each global sample index, (len(indices), *shape)."""
    if p.kind == "uniform":
        t = streams.uniform(stream, indices, shape)
    else:
        t = torch.sigmoid(p.mean + p.std * streams.normal(stream, indices, shape))
    if p.shift != 1.0:
        t = shifted(t, p.shift)
    if not p.late:
        return t
    is_late = streams.uniform(f"{stream}/is_late", indices, shape) < p.late
    return torch.where(is_late, 0.95 + 0.05 * streams.uniform(f"{stream}/late", indices, shape), t)


def part_times(
    p: TimeSpec, backbone: BackboneConfig, streams: Streams, stream: str, indices: np.ndarray
) -> Tensor:
    """Return t ~ p(t) per sample, (B, 1), or per part, (B, P); the first part has the sample's time."""
    first = sample_times(p, streams, stream, indices)
    more = [f"{stream}/{part.kind}" for part in backbone.parts[1:] if p.apart]
    return torch.stack([first, *(sample_times(p, streams, name, indices) for name in more)], dim=1)


def times_of_parts(t_BP: Tensor, backbone: BackboneConfig) -> Times:
    """Return times in which every token has the time of its part; t_BP: (B, P)."""
    if t_BP.shape[1] == 1:
        return Times(t_BP)
    return Times(t_BP, backbone.part_of_token.to(t_BP.device).expand(len(t_BP), -1))


def shifted(t: Tensor, alpha: float) -> Tensor:
    """Return alpha t / (1 + (alpha - 1) t); alpha > 1 moves times towards noise (Self-Flow App. A.2)."""
    return alpha * t / (1 + (alpha - 1) * t)


def interpolate(x0: Tensor, noise: Tensor, times: Times, layout: Layout) -> Tensor:
    """Return x_tau = (1 - tau) x0 + tau eps, with tau expanded from tokens to their values; all (B, ...).

    Given tokens keep their clean values, or have those of their noise.
    """
    if layout.given_tokens is not None:
        times = times.with_given(layout.given_tokens.to(x0.device))
    tau = layout.spread(times.per_token_levels())
    return (1 - tau) * x0 + tau * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """Return eps - x0."""
    return noise - x0


def as_target(velocity: Tensor, times: Times, backbone: BackboneConfig) -> Tensor:
    """Return a velocity eps - x0 as the target of the network's velocity at these times.

    It is the same, except for x-prediction, whose velocity is smaller near time 0 (backbone/prediction.py).
    """
    if backbone.prediction == "velocity":
        return velocity
    return share_of_velocity(times, backbone) * velocity
