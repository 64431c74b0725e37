"""Internal guidance: a second final layer predicts the velocity in the middle (arXiv 2512.24176).

L  = mean || v_f - (eps - x0) ||^2 + coefficient * mean || v_i - (eps - x0) ||^2
v_i = FinalLayer'(h_l, c)        v_f = FinalLayer(h_D, c)        FinalLayer' has its own weights
Sampling, at w = `eval.method_guidance`:    v = v_i + w (v_f - v_i)

It is the control for the question whether any target in the middle helps, and it needs no teacher. w = 1 is
the network's own velocity, so it turns the guidance off. The published w is 1.4, with classifier-free
guidance 1.35 below time 0.7: `eval.method_guidance=1.4 eval.guidance=1.35 eval.guidance_high=0.7`.
Defaults: coefficient 0.5 and layer 8, as released (CVL-UESTC/Internal-Guidance d048cc3: SiT/loss.py,
train.py, samplers.py).
Cost: one more final layer; guidance costs that layer too, and no additional pass.
Ours: the release has layer 8 for every size. Here it is 8 for L and XL, and 0.3 of the depth otherwise, which
is 4 for B. The release guides at w above 1 only; here w below 1 moves towards v_i.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor

from harness.backbone.condition import Condition, SharedText
from harness.backbone.network import Prediction
from harness.backbone.times import Times
from harness.config.backbone_spec import BackboneSpec
from harness.flow.batch import Batch, Draw
from harness.flow.path import as_target, velocity_target
from harness.flow.samplers import Network
from harness.flow.student import Student
from methods.common.alignment import resolved_layer, taps_of
from methods.common.method import Method, Needs, second_velocity_error
from methods.common.one_layer import OneLayerConfig

PUBLISHED_LAYER = {"L": 8, "XL": 8}


class InternalGuidance(Method):
    source = "Internal guidance, arXiv 2512.24176; CVL-UESTC/Internal-Guidance d048cc3"
    headline = "SiT-XL/2 FID 5.31 at 80 epochs and 1.75 at 800, both with its guidance (its abstract)"
    parts_mixed = True
    masks_given = True
    stacks_with = ("repa", "irepa", "haste", "layersync", "sra2")
    guides = True

    class Config(OneLayerConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0}
        published_layer: ClassVar = PUBLISHED_LAYER
        space: ClassVar[dict[str, Any]] = {"coefficient": {"low": 0.1, "high": 2.0, "log": True}}

        name: Literal["internal_guidance"] = "internal_guidance"
        coefficient: float = Field(0.5, ge=0)
        """Weight of the second velocity's loss."""
        layer: int | None = None
        """The layer that the second velocity is predicted from (1-based), before the last one."""

        def resolved(self, backbone: BackboneSpec) -> Self:
            found = super().resolved(backbone)
            if found.layer == backbone.depth:
                raise ValueError(
                    f"layer = {found.layer}: is the last one, whose velocity the network predicts already"
                )
            return found

        def needs(self) -> Needs:
            return Needs(outputs=taps_of(self.layer)) if self.coefficient else Needs()

    config: Config

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        inner = prediction.outputs[resolved_layer(self.config.layer)]
        backbone = self.setting.backbone
        target = as_target(velocity_target(batch.x0, draw.noise), draw.times, backbone)
        return second_velocity_error(inner, target, batch, draw, self.setting)

    def velocity(
        self,
        model: Network,
        x: Tensor,
        times: Times,
        y: Condition | SharedText,
        *,
        scale: float = 1.0,
        null: Condition | SharedText | None = None,
    ) -> Tensor:
        if scale == 1 or not self.config.coefficient:
            return super().velocity(model, x, times, y)
        layer = resolved_layer(self.config.layer)
        prediction = model(x, times, y, outputs=(layer,))
        inner = prediction.outputs[layer]
        return inner + scale * (prediction.velocity - inner)
