"""Token-relation distillation: align cosines between tokens instead of tokens (VideoREPA, arXiv 2505.23656).

L = L_gen + coefficient * mean_{samples, i, j} relu( | R(h_l)_ij - R(z)_ij | - margin ),
R(x)_ij = cos(x_i, x_j)

Defaults: as in VideoREPA's scripts, margin 0.1, coefficient 0.5. VideoREPA fine-tunes a video model (block 18
of CogVideoX, VideoMAEv2 targets); here the layer is REPA's. There is no projector, because relations do not
need a common width.
Cost: the encoder's forward pass, and T x T products of two feature sets.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from methods.common.alignment import relations
from methods.common.encoder_alignment import Encoded, EncodedConfig


class Relational(Encoded):
    source = "VideoREPA, arXiv 2505.23656; aHapBean/VideoREPA"

    class Config(EncodedConfig):
        name: Literal["relational"] = "relational"
        margin: float = Field(0.1, ge=0)
        """Differences of two cosines below it cost nothing."""

    config: Config

    def projector(self, dim: int) -> nn.Module:
        return nn.Identity()

    def compare(self, projected: Tensor, target: Tensor) -> Tensor:
        gap = relations(projected) - relations(target)
        return F.relu(gap.abs() - self.config.margin).mean()
