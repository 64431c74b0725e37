"""SIGReg: Self-Flow's two times, with features pushed towards a normal distribution instead of a teacher.

    t, s, M_i, tau_i and x_tau as in Self-Flow (arXiv 2603.06507)
    z_b  = mean_tokens h_l(x_tau, tau)                a_k ~ uniform on the unit sphere, drawn for each step
    L    = L_gen + coefficient * mean_k N sum_j w_j | mean_b exp(i t_j a_k z_b) - exp(-t_j^2 / 2) |^2

The last term is SIGReg (LeJEPA, arXiv 2511.08544): the statistic of Epps and Pulley for each of K random
projections of N samples, which is small if z is distributed as N(0, I). t_j are 17 points of [0, 3], and w_j
are trapezoid weights times exp(-t_j^2 / 2), doubled for negative t. No paper describes this combination.
Defaults: coefficient 0.05 as in the reference notes on a hobby project, whose code is not known here.
Self-Flow's mask ratio 0.25 and layer 0.3 D. K = 1024, as in the README of rbalestr-lab/lejepa (eddffdd).
Cost: N x D x K products for each group; no head, no teacher, no encoder.
Ours: z is the mean over tokens of the layer itself, without a projector. N is `group` consecutive samples, of
which a batch has several; LeJEPA's N is the batch, and its weights are 1 - coefficient and coefficient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from harness.backbone.network import Prediction
from harness.config.backbone_spec import BackboneSpec
from harness.flow.batch import Batch, Draw
from harness.flow.student import Student
from harness.runtime.precision import product
from harness.runtime.random_streams import Streams
from methods.common.alignment import check_layer, in_groups, layer_at, resolved_layer, taps_of
from methods.common.dual_timesteps import DualConfig, draw_dual
from methods.common.given_tokens import generated_only
from methods.common.method import Method, Needs

LARGEST_TIME, POINTS = 3.0, 17
"""The range and number of points t_j."""


class SigReg(Method):
    source = "secondary: notes on a hobby project; SIGReg from LeJEPA, arXiv 2511.08544"
    headline = "none published"
    masks_given = True

    class Config(DualConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0, "mask_ratio": 0.0}
        space: ClassVar[dict[str, Any]] = {
            "coefficient": {"low": 0.005, "high": 0.5, "log": True},
            "mask_ratio": {"low": 0.05, "high": 0.5},
        }

        name: Literal["sigreg"] = "sigreg"
        coefficient: float = Field(0.05, ge=0)
        """Weight of the statistic."""
        layer: int | None = None
        """The layer whose mean over tokens is regularised (1-based)."""
        projections: int = Field(1024, ge=1, le=2**16)
        """K: the number of random projections of a step."""
        group: int = Field(32, ge=2)
        """N: the number of consecutive samples whose distribution is compared with the normal one."""

        def resolved(self, backbone: BackboneSpec) -> Self:
            layer = check_layer("layer", self.layer, layer_at(0.3, backbone), backbone)
            return self.model_copy(update={"layer": layer})

        @property
        def strength(self) -> float:
            return self.coefficient

        def needs(self) -> Needs:
            times = 2 if self.masks else 1
            if not self.coefficient:
                return Needs(times=times)
            return Needs(times=times, taps=taps_of(self.layer), group=self.group)

    config: Config

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        draw = draw_dual(self.config, self.setting, streams, batch)
        if not self.config.weight(batch.step):
            return draw
        shape = (self.config.projections, self.setting.backbone.size.width)
        directions = F.normalize(streams.normal("projections", [batch.step], shape)[0], dim=-1)
        return replace(draw, shared={"projections": directions})

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        hidden = generated_only(prediction.hidden[resolved_layer(self.config.layer)], self.setting.backbone)
        z = hidden.float().mean(dim=1)
        return epps_pulley(product(in_groups(z, self.config.group), draw.shared["projections"].T)).mean()


def epps_pulley(x: Tensor) -> Tensor:
    """Return the statistic of N values against N(0, 1), for each group and projection: (G, N, K) -> (G, K).

    Their mean over the samples of a step does not depend on how groups are divided between micro-batches.
    """
    t = torch.linspace(0, LARGEST_TIME, POINTS, device=x.device)
    normal = torch.exp(-t.square() / 2)
    weights = normal * (2 * LARGEST_TIME / (POINTS - 1))
    # The trapezoid's ends have half of the weight of the other points.
    weights = torch.cat([weights[:1] / 2, weights[1:-1], weights[-1:] / 2])
    # A loop over 17 points instead of one tensor keeps the memory at that of the projections.
    gaps = [
        weight
        * ((torch.cos(point * x).mean(dim=1) - at).square() + torch.sin(point * x).mean(dim=1).square())
        for point, at, weight in zip(t, normal, weights, strict=True)
    ]
    return x.shape[1] * torch.stack(gaps).sum(dim=0)
