"""SARA's structural term: align the tokens' autocorrelation matrix with an encoder's (arXiv 2503.08253).

L = L_gen + coefficient * mean_{samples, i, j} ( R(P(h_l))_ij - R(z)_ij )^2,    R(x)_ij = cos(x_i, x_j)

P is REPA's projector. SARA adds this term to REPA's patch cosine and to an adversarial term; the latter
needs a separate optimizer and is not implemented. The abstract does not give the weight; 0.5 is REPA's.
Cost: the encoder's forward pass, the projector, and T x T products of two feature sets.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from methods.common.alignment import relations
from methods.common.encoder_alignment import Encoded, ProjectedConfig


class Gram(Encoded):
    source = "SARA, arXiv 2503.08253"
    headline = "FID 1.36 with guidance, all three of SARA's terms (SARA abstract)"

    class Config(ProjectedConfig):
        name: Literal["gram"] = "gram"

    config: Config

    def compare(self, projected: Tensor, target: Tensor) -> Tensor:
        return (relations(projected) - relations(target)).square().mean()
