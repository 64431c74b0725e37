"""LayerSync: align an early layer with a later one of the same pass (arXiv 2510.12581).

L = L_gen - coefficient * mean_{samples, tokens} cos( h_l, stop-gradient h_m ),    l < m

It is the cheap control for SRA and Self-Flow.
Defaults: coefficient 0.2; layers 8 <- 16 (XL), 8 <- 18 (L), otherwise XL's fractions of the depth, 0.29 and
0.57.
Cost: negligible; no head, no teacher, no encoder.
Disputed: the released argparse default (vita-epfl/LayerSync 4001d6d) aligns layer 8 with itself; equal layers
are rejected here. Its `multiple_sync` uses only the last pair (`transport/transport.py` lines 176-183); here
there is a single pair.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor

from harness.backbone.network import Prediction
from harness.config.backbone_spec import BackboneSpec
from harness.flow.batch import Batch, Draw
from harness.flow.student import Student
from methods.common.alignment import check_layer, cosine, layer_at, resolved_layer, taps_of
from methods.common.given_tokens import counted_tokens
from methods.common.method import Method, MethodConfig, Needs
from methods.common.missing_parts import mean_of_tokens

PUBLISHED_LAYERS = {"L": (8, 18), "XL": (8, 16)}


class LayerSync(Method):
    source = "LayerSync, arXiv 2510.12581; vita-epfl/LayerSync 4001d6d"
    headline = "SiT-XL/2 FID 11.24 against 17.97 after 80 epochs, ODE, no guidance (LayerSync)"
    parts_mixed = True
    masks_given = True

    class Config(MethodConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0}
        space: ClassVar[dict[str, Any]] = {"coefficient": {"low": 0.05, "high": 1.0, "log": True}}

        name: Literal["layersync"] = "layersync"
        coefficient: float = Field(0.2, ge=0)
        """Weight of the alignment term."""
        student_layer: int | None = None
        """The layer that is aligned (1-based)."""
        target_layer: int | None = None
        """The later layer that it is aligned to (1-based)."""

        def resolved(self, backbone: BackboneSpec) -> Self:
            default = (layer_at(8 / 28, backbone), layer_at(16 / 28, backbone))
            early, late = PUBLISHED_LAYERS.get(backbone.size, default)
            early = check_layer("student_layer", self.student_layer, early, backbone)
            late = check_layer("target_layer", self.target_layer, late, backbone)
            if early >= late:
                raise ValueError(
                    f"student_layer = {early}: must be below target_layer = {late}, or a layer aligns with "
                    "itself"
                )
            return self.model_copy(update={"student_layer": early, "target_layer": late})

        @property
        def strength(self) -> float:
            return self.coefficient

        def needs(self) -> Needs:
            return Needs(taps=taps_of(self.student_layer, self.target_layer)) if self.coefficient else Needs()

    config: Config

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        early, late = (
            prediction.hidden[resolved_layer(self.config.student_layer)],
            prediction.hidden[resolved_layer(self.config.target_layer)],
        )
        counted = counted_tokens(batch, self.setting.backbone)
        return mean_of_tokens(-cosine(early, late.detach()), counted)
