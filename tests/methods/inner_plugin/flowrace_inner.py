"""Inner: internal guidance (arXiv 2512.24176), a velocity from the middle that guides samples.

L = L_gen + coefficient * mean || v_i - (eps - x0) ||^2,    v_i = FinalLayer'(h_l, c)
Sampling, at w = `eval.method_guidance`:    v = v_i + w (v_f - v_i)
"""

from typing import ClassVar, Literal

from pydantic import Field

from methods.common.alignment import check_layer, layer_at
from methods.common.method import Method, MethodConfig, Needs, flow_loss


class Inner(Method):
    source = "an example, after arXiv 2512.24176"
    guides = True
    stacks_with = ("repa",)

    class Config(MethodConfig):
        off: ClassVar = {"coefficient": 0.0}
        name: Literal["inner"] = "inner"
        coefficient: float = Field(0.5, ge=0)
        layer: int | None = None

        def resolved(self, backbone):
            layer = check_layer("layer", self.layer, layer_at(0.3, backbone), backbone)
            return self.model_copy(update={"layer": layer})

        @property
        def strength(self):
            return self.coefficient

        def needs(self):
            return Needs(outputs=(self.layer,)) if self.coefficient else Needs()

    def align(self, student, batch, draw, prediction):
        return flow_loss(prediction.outputs[self.config.layer], batch, draw, self.setting)

    def velocity(self, model, x, times, y, *, scale=1.0, null=None):
        if scale == 1 or not self.config.coefficient:
            return super().velocity(model, x, times, y)
        prediction = model(x, times, y, outputs=(self.config.layer,))
        inner = prediction.outputs[self.config.layer]
        return inner + scale * (prediction.velocity - inner)
