"""Full masking: masked tokens are pure noise (a noise schedule in Self-Flow's Fig. 2b).

L = mean || v(x_tau, tau, y) - (eps - x0) ||^2,    tau_i = 1 where u_i < R_M, else t.

The loss is on all tokens.
Cost: two rows of modulation per sample; no additional pass.
Published: far worse than plain flow matching (reading of Self-Flow Fig. 2b: 35 against 17 at 400k steps).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from harness.backbone.times import Times
from harness.flow.batch import Batch, Draw
from harness.runtime.random_streams import Streams
from methods.common.method import Method, MethodConfig, Needs


class FullMasking(Method):
    source = "Full masking as in Self-Flow Fig. 2b, arXiv 2603.06507"
    headline = "SiT-XL/2 FID about 35 against 17 at 400k steps (reading of Self-Flow Fig. 2b)"
    times_apart = False
    parts_mixed = True
    masks_given = True

    class Config(MethodConfig):
        off: ClassVar[dict[str, Any]] = {"mask_ratio": 0.0}
        space: ClassVar[dict[str, Any]] = {"mask_ratio": {"low": 0.05, "high": 0.75}}

        name: Literal["full_masking"] = "full_masking"
        mask_ratio: float = Field(0.25, ge=0, le=1)
        """R_M: the fraction of tokens that are pure noise."""

        def needs(self) -> Needs:
            return Needs(times=2 if self.mask_ratio else 1)

    config: Config

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        draw = super().draw(streams, batch)
        if not self.config.mask_ratio:
            return draw
        mask = streams.uniform("mask", batch.index, (self.setting.backbone.tokens,)) < self.config.mask_ratio
        t = draw.times.levels[:, 0]
        return Draw(draw.noise, Times.dual(t, torch.ones_like(t), mask))
