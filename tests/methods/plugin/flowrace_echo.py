"""Echo: align a layer with the same layer of the EMA network.

L = L_gen + coefficient * mean_{samples, tokens, channels} | h_l(x_t, t) - h'_l(x_t, t) |
"""

from typing import ClassVar, Literal

from pydantic import Field

from harness.flow.path import interpolate
from methods.common.alignment import check_layer, distance, layer_at
from methods.common.method import Method, MethodConfig, Needs


class Echo(Method):
    source = "an example, not published"

    class Config(MethodConfig):
        off: ClassVar = {"coefficient": 0.0}
        name: Literal["echo"] = "echo"
        coefficient: float = Field(0.1, ge=0)
        layer: int | None = None

        def resolved(self, backbone):
            layer = check_layer("layer", self.layer, layer_at(0.5, backbone), backbone)
            return self.model_copy(update={"layer": layer})

        @property
        def strength(self):
            return self.coefficient

        def needs(self):
            return Needs(teacher=True, taps=(self.layer,)) if self.coefficient else Needs()

    def align(self, student, batch, draw, prediction):
        x_t = interpolate(batch.x0, draw.noise, draw.times, self.setting.backbone)
        target = student.teach(x_t, draw.times, batch.y, layer=self.config.layer)
        return distance("l1", prediction.hidden[self.config.layer], target).mean()
