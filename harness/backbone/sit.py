"""SiT, the Scalable Interpolant Transformer (Ma et al., arXiv 2401.08740, models.py), with times per token.

The network equals the released one, including parameter names: adaLN-Zero blocks, frozen sine-cosine
positions, label and timestep embeddings. There are two differences: attention is fused, and modulation is
computed once per noise level (times.py). Rotary positions are an option.

    B  samples    K  levels    T  tokens    D  width    N  heads    C  channels    E  extra channels
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone.attention import Attention
from harness.backbone.condition import Condition
from harness.backbone.config import BackboneConfig
from harness.backbone.embed import LabelEmbedder
from harness.backbone.layers import Mlp, modulate
from harness.backbone.network import Backbone, Prediction
from harness.backbone.routing import Route, Surroundings
from harness.backbone.times import Times

__all__ = ["Block", "Prediction", "SiT", "SiTConfig"]


@dataclass(frozen=True)
class SiTConfig(BackboneConfig):
    """Everything that determines the shape of a SiT.

    Its label table has one more row than there are classes, for the null label, which is `classes`.
    """

    def blank_condition(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int64)


class SiT(Backbone):
    """The network that is conditioned on labels."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        depth, width, heads = config.size
        self._build_embedders()
        self.y_embedder = LabelEmbedder(config.classes, width)
        self._build_positions()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self._build_outputs()

    def forward(
        self,
        x: Tensor,
        times: Times,
        y: Condition,
        *,
        taps: Collection[int] = (),
        stop_after: int | None = None,
        groups: Tensor | None = None,
        extra: Tensor | None = None,
        heads: Collection[int] = (),
        outputs: Collection[int] = (),
        route: Route | None = None,
    ) -> Prediction:
        """Predict the velocity for labels y (B,), of which `classes` is the null label; see `Backbone`."""
        if not isinstance(y, Tensor):
            raise TypeError(
                f"a SiT is conditioned on labels, int64 (B,), but got {type(y).__name__}; text needs "
                'backbone.kind = "mmdit"'
            )
        times = self._with_given(times)
        c_BKD = self.t_embedder(times.levels) + self.y_embedder(y)[:, None]
        c_BKD = F.silu(c_BKD)
        mask = None if groups is None else (groups[:, None, :, None] == groups[:, None, None, :])
        h, turns = self._tokens(x, extra)
        if route is not None and extra is not None:
            route = route.with_extra()
        passage = self._passage(Surroundings(c_BKD, times, mask, turns), route)
        hidden, queries_keys, velocities = {}, {}, {}
        for layer, block in enumerate(self.blocks, start=1):
            h, given = passage.into(layer, h)
            if passage.runs(layer):
                h, compared = self._run_block(block, h, *given)
                if layer in heads:
                    queries_keys[layer] = compared
            if layer in taps:
                hidden[layer] = passage.every(h)
            if layer in outputs:
                velocities[layer] = self._velocity_at(layer, x, passage.every(h), c_BKD, times)
            h = passage.beyond(layer, h)
            if layer == stop_after:
                # Only the teacher stops early, and its caller does not read the velocity.
                return Prediction(cast(Tensor, None), hidden, heads=queries_keys, outputs=velocities)
        velocity, extra = self._velocity(x, h, c_BKD, times, extra is not None)
        return Prediction(velocity, hidden, extra, queries_keys, velocities)


class Block(nn.Module):
    """An adaLN-Zero transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, 4 * width)
        # SiT applies SiLU to the condition once, so each block has an identity in its place.
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 6 * width))

    def forward(
        self, h: Tensor, c_BKD: Tensor, times: Times, mask: Tensor | None, turns: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return tokens (B, T, D), and the queries and keys of the attention."""
        # Six selections instead of one of six times the width: their gradients need not be concatenated.
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c_BKD).chunk(6, dim=-1)
        six = (shift_a, 1 + scale_a, gate_a, shift_m, 1 + scale_m, gate_m)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = map(times.select, six)
        mixed, queries_keys = self.attn(modulate(h, shift_a, scale_a), mask, turns)
        h = h + gate_a * mixed
        return h + gate_m * self.mlp(modulate(h, shift_m, scale_m)), queries_keys
