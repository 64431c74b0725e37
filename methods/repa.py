"""REPA: align an early layer with a frozen encoder's tokens (Yu et al., arXiv 2410.06940).

L = L_gen + coefficient * mean_{encoders, samples, tokens} -cos( P(h_l), z ),    z = encoder(x0),
P = Linear-SiLU-Linear-SiLU-Linear, one for each encoder

Defaults: as released (sihyun-yu/REPA 67f7145, loss.py), coefficient 0.5, projector width 2048, layer 4 for B,
8 for L, XL and T2I, DINOv2-B.
Cost: the encoder's forward pass (online); no additional pass of the backbone.
Disputed: the logged value is -cos in [-1, 1], while Self-Flow logs 1 - cos; the gradient is the same. NT-Xent
instead of the cosine makes little difference (10.0 against 9.9, Table 2).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from methods.common.alignment import cosine, distance
from methods.common.encoder_alignment import Encoded, ProjectedConfig


class RepaConfig(ProjectedConfig):
    """REPA's settings, also for the methods derived from it."""

    similarity: Literal["cosine", "nt_xent"] = "cosine"
    """Negative cosine as published, or NT-Xent (REPA Table 2)."""


class RepaAlignment(Encoded):
    """REPA's alignment term, also for the methods derived from it."""

    def compare(self, projected: Tensor, target: Tensor) -> Tensor:
        if self.config.similarity == "nt_xent":
            return distance("nt_xent", projected, target).mean()
        return -cosine(projected, target).mean()


class Repa(RepaAlignment):
    source = "REPA, arXiv 2410.06940; sihyun-yu/REPA 67f7145"
    headline = "SiT-XL/2 FID 7.9 at 400k steps, SDE, no guidance (REPA Table 3)"

    class Config(RepaConfig):
        name: Literal["repa"] = "repa"

    config: Config
