"""PixelREPA: an adapter of masked blocks predicts an encoder's tokens (arXiv 2603.14366).

L = L_gen + coefficient * mean_{encoders, samples, tokens} 1 - cos( A(h_l, t, y), z ),    z = encoder(x0)
A(h) = P( block_2( block_1( h', c ), c ) ),    h' = a learned mask token where u <= mask_ratio, h elsewhere
c = time embedding + label embedding, the adapter's own;    P = Linear-LayerNorm-SiLU-Linear

REPA's projector sees one token, and can copy it. The adapter has to infer masked tokens from the others. It
serves training only. P is left out if the widths are equal.
Defaults: as released (kaist-cvml/PixelREPA 5181608: denoiser_pixelREPA.py `forward_mta`, model_pixelREPA.py
`MaskedTransformerAdapter`, engine_pixelREPA.py), coefficient 0.1, 2 blocks, mask ratio 0.2, DINOv2-B, layer 4
for B and 8 for L, after which JiT adds its class tokens. It trains on pixels with `time.kind=logit_normal
time.mean=0.8 time.std=0.8`, where the release has mean -0.8, as its time runs the other way.
Cost: the encoder's forward pass (online), and two blocks at the width of the network.
Ours: the blocks are SiT's, with rotary positions. The release has JiT's, with RMSNorm, SwiGLU, normalised
queries and 32 class tokens in the sequence. With texts, c is the time alone, as in MMDiT's image stream. The
release predicts x, with a loss on the velocity (`flow.prediction=x`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from harness.backbone.condition import Condition
from harness.backbone.config import BackboneConfig
from harness.backbone.embed import LabelEmbedder, TimestepEmbedder
from harness.backbone.mmdit import MMDiTConfig
from harness.backbone.network import Prediction
from harness.backbone.rotary import check_heads, rotation
from harness.backbone.sit import Block
from harness.backbone.times import Times
from harness.errors import UserError
from harness.flow.batch import Batch, Draw
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.common.alignment import distance, resolved_layer
from methods.common.encoder_alignment import EncodedConfig
from methods.common.method import Method, Setting

MASKED = "adapter_masked"


class PixelRepa(Method):
    source = "PixelREPA, arXiv 2603.14366; kaist-cvml/PixelREPA 5181608"
    headline = "JiT-B/16 FID 3.17 against JiT's 3.66, guided (reference notes on PixelREPA)"
    # The adapter attends from all tokens to all.
    masks_given = False

    class Config(EncodedConfig):
        name: Literal["pixelrepa"] = "pixelrepa"
        coefficient: float = Field(0.1, ge=0)
        """Weight of the alignment term."""
        mask_ratio: float = Field(0.2, ge=0, lt=1)
        """Probability of a token to be masked in the adapter."""
        blocks: int = Field(2, ge=1)
        """Number of the adapter's blocks."""

    config: Config

    def __init__(self, config: Config, setting: Setting) -> None:
        super().__init__(config, setting)
        if config.coefficient:
            _check_heads(setting.backbone)
            self.adapters = nn.ModuleList(
                MaskedAdapter(setting.backbone, config.blocks, dim) for dim in setting.encoder_dims
            )

    def draw_more(self, streams: Streams, batch: Batch, draw: Draw) -> Draw:
        if not self.config.weight(batch.step):
            return draw
        u_BT = streams.uniform("adapter_mask", batch.index, (self.setting.backbone.tokens,))
        return replace(draw, extra=draw.extra | {MASKED: u_BT <= self.config.mask_ratio})

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        hidden = prediction.hidden[resolved_layer(self.config.layer)]
        adapted = [adapter(hidden, draw.extra[MASKED], draw.times, batch.y) for adapter in self.adapters]
        pairs = zip(adapted, batch.views, strict=True)
        return torch.stack([distance("cosine", ours, view.tokens).mean() for ours, view in pairs]).mean()


def _check_heads(backbone: BackboneConfig) -> None:
    """Raise `UserError` if the adapter's rotary positions do not fit into its heads."""
    _, width, heads = backbone.size
    try:
        check_heads(width // heads, backbone.parts)
    except ValueError as error:
        raise UserError(
            f"method.name = pixelrepa: its adapter has the heads of the network, and {error}; choose a "
            "backbone.size with wider heads"
        ) from error


class MaskedAdapter(nn.Module):
    """Blocks over a layer's tokens, some of which are masked, conditioned on times and labels."""

    turns: Tensor

    def __init__(self, backbone: BackboneConfig, blocks: int, dim: int) -> None:
        super().__init__()
        _, width, heads = backbone.size
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.t_embedder = TimestepEmbedder(width)
        has_labels = not isinstance(backbone, MMDiTConfig)
        self.y_embedder = LabelEmbedder(backbone.classes, width) if has_labels else None
        self.register_buffer("turns", rotation(width // heads, backbone.parts), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.projection = Projection(width, dim) if width != dim else nn.Identity()

    def forward(self, h: Tensor, masked: Tensor, times: Times, y: Condition) -> Tensor:
        """Return tokens (B, T, dim) from those of a layer (B, T, D) and the mask (B, T) bool."""
        c_BKD = self.t_embedder(times.levels)
        if self.y_embedder is not None and isinstance(y, Tensor):
            c_BKD = c_BKD + self.y_embedder(y)[:, None]
        c_BKD = F.silu(c_BKD)
        h = torch.where(masked[:, :, None], self.mask_token.to(h.dtype), h)
        for block in self.blocks:
            h, _ = block(h, c_BKD, times, None, self.turns)
        return self.projection(h)


class Projection(nn.Module):
    """Two linear layers with a layer norm and SiLU between them."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, dim)

    def forward(self, h: Tensor) -> Tensor:
        """Return tokens (B, T, dim)."""
        return self.fc2(F.silu(self.norm(self.fc1(h))))
