"""REED: two encoders at two layers, and a flow loss that is ramped up (Wang et al., arXiv 2507.08980).

    L = w(step) L_gen + coefficient ( image_weight L_img + pooled_weight L_pool )
    L_img  = mean_{samples, tokens} -cos( P(h_l), z ),                        z = encoder(x0), as in REPA
    L_pool = mean_samples -cos( P'(mean_tokens h_m), mean_tokens z' ),        z' = pooled_encoder(x0)
    w(step) = min(1, (step - 1) / flow_warmup)

Defaults: as released (ChenyuWang-Monica/REED 0a4527e, image/train.py and README), coefficient 0.5, weights 1
and 0.5, 50k steps of warm-up, layers 8 and 16 for XL. Otherwise REPA's layer and 16 / 28 of the depth.
Cost: the forward passes of both encoders; no additional pass of the backbone.
Ours: the release's second target is the mean hidden state of Qwen2-VL-7B (layer 15) over an image and its
caption, stored in a file for each image. Here it is the mean over the tokens of any encoder of images, by
default an image tower that was trained with captions. Captions themselves are not read. `further` encoders
of tokens are averaged with the first one, as in REPA, where the release adds them up.
Disputed: in the release, a weight of 0 acts as 1 (image/loss.py: "only update the projector", though the
layer has the gradient too). Here it leaves the term out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator
from torch import Tensor

from harness.backbone.network import Prediction
from harness.config.backbone_spec import BackboneSpec
from harness.flow.batch import Batch, Draw
from harness.flow.student import Student
from methods.common.alignment import EncoderSpec, check_layer, cosine, layer_at, resolved_layer, taps_of
from methods.common.encoder_alignment import Encoded, ProjectedConfig
from methods.common.given_tokens import generated_only
from methods.common.method import Needs, Setting

SIGLIP2_B = EncoderSpec(name="open_clip:ViT-B-16-SigLIP2.webli")


class Reed(Encoded):
    source = "REED, arXiv 2507.08980; ChenyuWang-Monica/REED 0a4527e"
    headline = "SiT-XL/2 FID 8.2 at 300k steps, no guidance (reference notes on REED)"

    class Config(ProjectedConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0, "flow_warmup": 0}

        name: Literal["reed"] = "reed"
        image_weight: float = Field(1.0, ge=0)
        """Weight of the term of tokens."""
        pooled_encoder: EncoderSpec = SIGLIP2_B
        """The encoder whose mean over tokens is the second target."""
        pooled_layer: int | None = None
        """m: the student layer whose mean over tokens is aligned (1-based)."""
        pooled_weight: float = Field(0.5, ge=0)
        """Weight of the term of means; 0 leaves out its encoder."""
        flow_warmup: int = Field(50_000, ge=0)
        """Steps over which the weight of the flow loss rises linearly from 0 to 1."""

        # Any: a raw table, or an encoder.
        @field_validator("pooled_encoder", mode="before")
        @classmethod
        def _has_its_default_name(cls, encoder: Any) -> Any:
            """Fill in the name, so that `pooled_encoder.download = true` alone applies to the default."""
            return {"name": SIGLIP2_B.name, **encoder} if isinstance(encoder, Mapping) else encoder

        def resolved(self, backbone: BackboneSpec) -> Self:
            default = layer_at(16 / 28, backbone)
            layer = check_layer("pooled_layer", self.pooled_layer, default, backbone)
            return super().resolved(backbone).model_copy(update={"pooled_layer": layer})

        def flow_weight(self, step: int) -> float:
            return 1.0 if step > self.flow_warmup else (step - 1) / self.flow_warmup

        def needs(self) -> Needs:
            if not self.strength or not self.pooled_weight:
                return super().needs()
            encoders = (self.encoder, *self.further, self.pooled_encoder)
            return Needs(encoders, taps=taps_of(*sorted({self.layer or 0, self.pooled_layer or 0})))

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        *dims, last = setting.encoder_dims or (0,)
        pools = bool(config.coefficient and config.pooled_weight)
        of_tokens = tuple(dims) if pools else setting.encoder_dims
        super().__init__(config, replace(setting, encoder_dims=of_tokens))
        if pools and setting.encoder_dims:
            self.pooled_projector = self.projector(last)

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        config = self.config
        if not config.pooled_weight:
            return config.image_weight * super().align(student, batch, draw, prediction)
        *of_tokens, of_means = batch.views
        image = super().align(student, replace(batch, views=tuple(of_tokens)), draw, prediction)
        hidden = prediction.hidden[resolved_layer(config.pooled_layer)]
        mean = generated_only(hidden, self.setting.backbone).mean(dim=1)
        pooled = -cosine(self.pooled_projector(mean), of_means.tokens.float().mean(dim=1)).mean()
        return config.image_weight * image + config.pooled_weight * pooled

    def compare(self, projected: Tensor, target: Tensor) -> Tensor:
        return -cosine(projected, target).mean()
