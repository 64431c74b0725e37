"""ReDi: principal components of an encoder's features are generated together with the sample (2504.16064).

    z   = upsampled to the axes of x0 ( V (f - mean) / std ),    f = encoder(x0), V its first `rank` axes
    x_t = (1 - t) [x0, z] + t [eps, eps_z]                       the network has `rank` further channels
    L   = mean || v - (eps - x0) ||^2 + feature_weight * mean || v_z - (eps_z - z) ||^2

Both means have the factor of `flow.weighting` at each time. The sampler integrates both, and drops z at the
end.
Defaults: as released (zelaki/ReDi 58c65a8, train_redi.py and transport.py), rank 8, weight 1, bilinear
upsampling from the token grid, DINOv2-B with registers. harness/encoders/pca.py computes the components.
Cost: the encoder's forward pass at every step; wider first and last layers, also in sampling.
Ours: x0 has the noise that all methods share. Classifier-free guidance applies to both, as in the released
`forward_with_cfg`, where the released evaluation guides x0 alone (`--cfg-vae True`). Representation guidance,
which drops z in training, and the optional REPA term are not implemented.
Disputed: sample.py builds the network with the unused channels of `backbone.learn_sigma`, while train_redi.py
and sample_ddp.py leave them out, as the default here does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from harness.flow.batch import Batch, Draw
from harness.flow.path import interpolate, velocity_target
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.common.alignment import EncoderSpec
from methods.common.method import Losses, Method, MethodConfig, Needs, flow_loss, second_velocity_error

DINOV2_B_REGISTERS = EncoderSpec(name="timm:vit_base_patch14_reg4_dinov2.lvd142m")
UPSAMPLING = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""Mode of interpolation by the number of axes of a sample."""


class ReDi(Method):
    source = "ReDi, arXiv 2504.16064; zelaki/ReDi 58c65a8"
    headline = "SiT-XL/2 FID 1.64 at 600 epochs, with guidance (its README)"

    class Config(MethodConfig):
        off: ClassVar[dict[str, Any]] = {"feature_weight": 0.0}
        space: ClassVar[dict[str, Any]] = {"feature_weight": {"low": 0.1, "high": 2.0, "log": True}}

        name: Literal["redi"] = "redi"
        encoder: EncoderSpec = DINOV2_B_REGISTERS
        rank: int = Field(8, ge=1, le=4096)
        """Number of principal components."""
        feature_weight: float = Field(1.0, ge=0)
        """Weight of the components' velocity; 0 leaves them out."""

        # Any: a raw table, or an encoder.
        @field_validator("encoder", mode="before")
        @classmethod
        def _has_the_default_name(cls, encoder: Any) -> Any:
            """Fill in the name, so that `encoder.download = true` alone applies to the default encoder."""
            return {"name": DINOV2_B_REGISTERS.name, **encoder} if isinstance(encoder, Mapping) else encoder

        def encodes(self, step: int) -> bool:
            return bool(self.feature_weight)

        def needs(self) -> Needs:
            if not self.feature_weight:
                return Needs()
            name = f"pca:{self.rank}:{self.encoder.name}"
            return Needs((self.encoder.model_copy(update={"name": name}),), features=self.rank)

    config: Config

    def draw_more(self, streams: Streams, batch: Batch, draw: Draw) -> Draw:
        backbone = self.setting.backbone
        if backbone.features:
            shape = (backbone.features, *backbone.shape[1:])
            draw.extra["feature_noise"] = streams.normal("feature_noise", batch.index, shape)
        return draw

    def loss(self, student: Student, batch: Batch, draw: Draw) -> Losses:
        weight, backbone = self.config.feature_weight, self.setting.backbone
        if not weight:
            return super().loss(student, batch, draw)
        z, noise = (
            upsampled(batch.views[0].tokens, backbone.grid, backbone.shape[1:]),
            draw.extra["feature_noise"],
        )
        both, both_noise = torch.cat([batch.x0, z], dim=1), torch.cat([draw.noise, noise], dim=1)
        prediction = student(interpolate(both, both_noise, draw.times, backbone), draw.times, batch.y)
        channels = batch.x0.shape[1]
        of_sample, of_features = prediction.velocity.tensor_split([channels], dim=1)
        parts = {
            "flow": flow_loss(of_sample, batch, draw, self.setting),
            "features": second_velocity_error(
                of_features, velocity_target(z, noise), batch, draw, self.setting
            ),
        }
        return Losses(self.weighted_flow(parts["flow"], batch.step) + weight * parts["features"], parts)


def upsampled(tokens: Tensor, grid: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """Return tokens (B, T, K) of a grid as channels of a sample, float32 (B, K, *axes)."""
    maps = tokens.float().transpose(1, 2).unflatten(2, grid)
    return F.interpolate(maps, axes, mode=UPSAMPLING[len(axes)])
