"""REG: the encoder's noised class token is generated together with the image (arXiv 2507.01467).

    c_t = (1 - t) c + t eps_c,    c = summary of encoder(x0)
    L   = L_gen + token_weight * mean || v_c - (eps_c - c) ||^2
          + coefficient * mean_{T + 1 tokens} -cos( P(h_l), [c, z] )

LayerNorm(W c_t) is an extra token of the network, and the sampler integrates image and token together.
Defaults: as published, token weight 0.03, coefficient 0.5, REPA's layer and projector, DINOv2-B. With
`token_weight = 0` there is no extra token, which is REPA.
Cost: the encoder's forward pass at every step, also after `schedule.until`; an extra token in the network,
also in sampling.
Ours: encoders without a class token give the mean of their tokens. The token has no position. Only one
encoder is supported.
Disputed: early results without guidance were questioned (REG issue 10).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from harness.flow.batch import Batch, Draw, View
from harness.flow.path import interpolate
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.common.alignment import taps_of
from methods.common.method import Losses, Needs, flow_loss
from methods.repa import RepaAlignment, RepaConfig


class Reg(RepaAlignment):
    source = "REG, arXiv 2507.01467; Martinser/REG 021ea2e"
    headline = "SiT-XL/2 FID 3.4 at 400k steps, SDE, no guidance (REG)"
    times_apart = False
    # The extra token has the sample's single time.
    masks_given = False

    class Config(RepaConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0, "token_weight": 0.0}
        space: ClassVar[dict[str, Any]] = {
            "coefficient": {"low": 0.1, "high": 2.0, "log": True},
            "token_weight": {"low": 0.01, "high": 0.1, "log": True},
        }

        name: Literal["reg"] = "reg"
        token_weight: float = Field(0.03, ge=0)
        """beta: the weight of the extra token's velocity."""

        def encodes(self, step: int) -> bool:
            return bool(self.token_weight) or super().encodes(step)

        def needs(self) -> Needs:
            if not self.token_weight:
                return super().needs()
            taps = taps_of(self.layer) if self.coefficient else ()
            return Needs((self.encoder, *self.further), summary=True, taps=taps)

    config: Config

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        draw = super().draw(streams, batch)
        if self.config.token_weight:
            noise = streams.normal("token_noise", batch.index, (self.setting.encoder_dims[0],))
            draw.extra["token_noise"] = noise
        return draw

    def loss(self, student: Student, batch: Batch, draw: Draw) -> Losses:
        config, weight = self.config, self.config.weight(batch.step)
        if not config.token_weight:
            return super().loss(student, batch, draw)
        clean, noise = summary_of(batch.views[0]), draw.extra["token_noise"]
        t = draw.times.levels
        prediction = student(
            interpolate(batch.x0, draw.noise, draw.times, self.setting.backbone),
            draw.times,
            batch.y,
            taps=self.needs().taps if weight else (),
            extra=(1 - t) * clean + t * noise,
        )
        parts = {"flow": flow_loss(prediction.velocity, batch, draw, self.setting)}
        if prediction.extra is None:
            raise ValueError("the backbone has no extra token: build it with SiTConfig(extra=encoder dim)")
        parts["token"] = F.mse_loss(prediction.extra.float(), noise - clean)
        total = self.weighted_flow(parts["flow"], batch.step) + config.token_weight * parts["token"]
        if weight:
            parts["align"] = self.align(student, with_summary(batch), draw, prediction)
            total = total + weight * parts["align"]
        return Losses(total, parts)


def summary_of(view: View) -> Tensor:
    """Return the summary (B, dim) of a view; raises ValueError if it has none."""
    if view.summary is None:
        raise ValueError("the encoder's view has no summary")
    return view.summary


def with_summary(batch: Batch) -> Batch:
    """Return the batch with each view's summary as its first token, in the order of the network's tokens."""
    views = (v._replace(tokens=torch.cat([summary_of(v)[:, None], v.tokens], dim=1)) for v in batch.views)
    return replace(batch, views=tuple(views))
