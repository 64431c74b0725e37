"""Diffusion forcing: a separate time for every token (a noise schedule in Self-Flow's Fig. 2b).

L = mean || v(x_tau, tau, y) - (eps - x0) ||^2,    tau_i ~ p(t) i.i.d. per token.

`share` is the probability that a token has a separate time; otherwise it has the sample's time. 1 is
diffusion forcing, 0 plain flow matching.
Cost: modulation for every token, because the number of levels equals that of tokens: +48 % of a SiT-XL
forward pass.
Published: far worse than plain flow matching on images (reading of Self-Flow Fig. 2b: 38 against 15 at 500k
steps).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from harness.backbone.times import Times
from harness.flow.batch import Batch, Draw
from harness.flow.path import sample_times
from harness.runtime.random_streams import Streams
from methods.common.method import Method, MethodConfig, Needs


class DiffusionForcing(Method):
    source = "Diffusion forcing as in Self-Flow Fig. 2b, arXiv 2603.06507"
    headline = "SiT-XL/2 FID about 42 against 20 at 300k steps (reading of Self-Flow Fig. 2b)"
    times_apart = False
    parts_mixed = True
    masks_given = True

    class Config(MethodConfig):
        off: ClassVar[dict[str, Any]] = {"share": 0.0}
        space: ClassVar[dict[str, Any]] = {"share": {"low": 0.1, "high": 1.0}}

        name: Literal["diffusion_forcing"] = "diffusion_forcing"
        share: float = Field(1.0, ge=0, le=1)
        """Probability that a token has a separate time; 0 is plain flow matching."""

        def needs(self) -> Needs:
            return Needs(times=0 if self.share else 1)

    config: Config

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        draw = super().draw(streams, batch)
        if not self.config.share:
            return draw
        tokens = (self.setting.backbone.tokens,)
        separate = sample_times(self.setting.time, streams, "token_time", batch.index, tokens)
        chosen = streams.uniform("mask", batch.index, tokens) < self.config.share
        return Draw(draw.noise, Times.per_token(torch.where(chosen, separate, draw.times.levels)))
