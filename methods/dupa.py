"""DUPA: two noisings of one sample agree in the middle of the network (ICLR 2026, OpenReview ALpn1nQj5R).

L = mean_{i = 1, 2} L_gen(t_i, eps_i) - coefficient * mean_{samples, tokens} cos( P(h_l^1), P(h_l^2) )

(t_1, eps_1) and (t_2, eps_2) are independent draws for the same x0, with the same condition and the same
weights. P = Linear-SiLU-Linear-SiLU-Linear, REPA's projector, onto the width of the layer.
Defaults: coefficient 0.5 and layer 8, for L and XL; 0.3 of the depth otherwise, which is 4 for B.
Cost: two passes of the backbone, and so twice the FLOPs of a step; no teacher, no encoder.
Disputed: the source is secondary, notes on the paper, because its code (PCH-gg/DUPA) was not available. The
form of P, gradients through both sides and the mean over both flow losses are therefore ours. The paper's
network is a DDT, in which a separate decoder predicts the velocity from the aligned tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from harness.flow.batch import Batch, Draw
from harness.flow.path import part_times, times_of_parts
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.common.alignment import cosine, mlp, resolved_layer
from methods.common.method import Losses, Method, Setting, flow_loss
from methods.common.missing_parts import mean_of_tokens, present_tokens
from methods.common.one_layer import OneLayerConfig

PUBLISHED_LAYER = {"L": 8, "XL": 8}


class Dupa(Method):
    source = "DUPA, ICLR 2026, OpenReview ALpn1nQj5R (secondary notes; its code was not available)"
    headline = "DDT-L FID 11.1 against 14.9 at 400k steps (secondary note on DUPA)"
    parts_mixed = True
    student_cost = (2.0, 2.1)

    class Config(OneLayerConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0}
        published_layer: ClassVar = PUBLISHED_LAYER
        space: ClassVar[dict[str, Any]] = {"coefficient": {"low": 0.1, "high": 2.0, "log": True}}

        name: Literal["dupa"] = "dupa"
        coefficient: float = Field(0.5, ge=0)
        """Weight of the agreement of the two passes; 0 is one pass."""
        layer: int | None = None
        """The layer that is aligned (1-based)."""
        projector_width: int = Field(2048, ge=1)
        """Hidden width of the three-layer projector."""

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        if config.coefficient:
            width, hidden = setting.backbone.size.width, config.projector_width
            self.projector = mlp(width, hidden, hidden, width)

    def draw_more(self, streams: Streams, batch: Batch, draw: Draw) -> Draw:
        if not self.config.weight(batch.step):
            return draw
        t = part_times(self.setting.time, self.setting.backbone, streams, "time/twin", batch.index)
        noise = streams.normal("noise/twin", batch.index, batch.x0.shape[1:])
        return replace(draw, twin=Draw(noise, times_of_parts(t, self.setting.backbone)))

    def loss(self, student: Student, batch: Batch, draw: Draw) -> Losses:
        """Return the mean of both flow losses and the weighted agreement; without a twin, flow's loss."""
        if draw.twin is None:
            return super().loss(student, batch, draw)
        both, layer = (draw, draw.twin), resolved_layer(self.config.layer)
        passes = [self.predict(student, batch, one, self.needs()) for one in both]
        velocities = [prediction.velocity for prediction in passes]
        losses = [flow_loss(v, batch, one, self.setting) for v, one in zip(velocities, both, strict=True)]
        flow = torch.stack(losses).mean()
        first, second = (self.projector(prediction.hidden[layer]) for prediction in passes)
        present = present_tokens(batch, self.setting.backbone)
        align = mean_of_tokens(-cosine(first, second), present)
        total = self.weighted_flow(flow, batch.step) + self.config.weight(batch.step) * align
        return Losses(total, {"flow": flow, "align": align})
