"""REPA: align an early layer with a frozen encoder's tokens (Yu et al., arXiv 2410.06940; loss.py at 67f7145).

L = L_gen + coefficient * mean_{samples, tokens} -cos( P(h_l), z ),    z = encoder(x0),  P = Linear-SiLU-Linear-SiLU-Linear.

Defaults as released: coefficient 0.5, projector width 2048, layer 4 for B, 8 for L and XL (the paper's Table 6 has B
swapped: author's correction in REPA issue 5); other depths take 0.3 of the depth.
Cost: the encoder's forward pass (online); nothing of the backbone runs twice.
Disputed: the logged value is -cos in [-1, 1], where Self-Flow logs 1 - cos; the gradient is the same.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from harness.backbone.student import Student
from harness.batch import Batch, Draw
from harness.path import interpolate
from harness.spec import BackboneSpec
from methods.align import EncoderSpec, check_layer, cosine, layer_at, mlp3
from methods.method import Losses, Method, MethodConfig, Needs, Setting, flow_loss

PUBLISHED_LAYER = {"B": 4, "L": 8, "XL": 8}


class Repa(Method):
    class Config(MethodConfig):
        name: Literal["repa"] = "repa"
        coefficient: float = Field(0.5, ge=0)
        encoder: EncoderSpec = EncoderSpec(name="timm:vit_base_patch14_dinov2.lvd142m")
        layer: int | None = None
        projector_width: int = Field(2048, ge=1)

        def resolved(self, backbone: BackboneSpec) -> Self:
            default = PUBLISHED_LAYER.get(backbone.size) or layer_at(0.3, backbone)
            return self.model_copy(update={"layer": check_layer("layer", self.layer, default, backbone)})

        @property
        def strength(self) -> float:
            return self.coefficient

        def needs(self) -> Needs:
            return Needs(encoder=self.encoder, taps=(self.layer,)) if self.coefficient else Needs()

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        if config.coefficient:
            self.projector = mlp3(setting.backbone.size.width, config.projector_width, setting.encoder_dim)

    def loss(self, student: Student, batch: Batch, draw: Draw) -> Losses:
        weight = self.config.weight(batch.step)
        x_t = interpolate(batch.x0, draw.noise, draw.times, student.config.patch)
        prediction = student(x_t, draw.times, batch.y, taps=(self.config.layer,) if weight else ())
        flow = flow_loss(prediction.velocity, batch, draw)
        if not weight:
            return Losses(flow, {"flow": flow})
        projected = self.projector(prediction.hidden[self.config.layer])
        align = -cosine(projected, batch.features).mean()
        return Losses(flow + weight * align, {"flow": flow, "align": align})
