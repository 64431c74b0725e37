"""The released arithmetic of a Self-Flow step, to measure against: modulation per token, a full teacher pass, float32, eager.

The same network and weights as ours; what differs is what Self-Flow's `src/model.py` does (reference commit 53db4f0): the
adaLN linear runs on every token, and the teacher runs all blocks though one of them is read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbone.sit import Block, SiT, modulate
from harness.backbone.times import Times
from harness.backbone.tokens import unpatchify


def forward(model: SiT, x: Tensor, tau_BT: Tensor, y: Tensor, tap: int) -> tuple[Tensor, Tensor]:
    """Velocity (B, C, H, W) and the output of block `tap`, with the conditioning of every token computed for itself."""
    c_BTD = F.silu(model.t_embedder(tau_BT) + model.y_embedder(y)[:, None])
    h = model.x_embedder(x) + model.pos_embed
    hidden = h
    for layer, block in enumerate(model.blocks, start=1):
        h = _block(block, h, c_BTD)
        if layer == tap:
            hidden = h
    shift, scale = model.final_layer.adaLN_modulation(c_BTD).chunk(2, dim=-1)
    out = model.final_layer.linear(modulate(h, shift, scale))
    config = model.config
    return unpatchify(out, config.parts[0].patch, config.shape[1:])[:, : config.shape[0]], hidden


def _block(block: Block, h: Tensor, c_BTD: Tensor) -> Tensor:
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(c_BTD).chunk(6, dim=-1)
    h = h + gate_a * block.attn(modulate(h, shift_a, scale_a), None)[0]
    return h + gate_m * block.mlp(modulate(h, shift_m, scale_m))


def tau_of(times: Times, tokens: int) -> Tensor:
    """The time of every token, (B, T), also where they all share one."""
    return times.per_token_levels().expand(-1, tokens)


def ema_step(ema: SiT, model: SiT, decay: float) -> None:
    """The released loop's update, one parameter at a time."""
    with torch.no_grad():
        for shadow, parameter in zip(ema.parameters(), model.parameters(), strict=True):
            shadow.mul_(decay).add_(parameter, alpha=1 - decay)
