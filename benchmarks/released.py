"""The released arithmetic of a training step, to measure against; the networks and weights are ours.

Self-Flow's `src/model.py` (reference commit 53db4f0) runs the adaLN linear on every token, and the teacher runs all blocks
though one of them is read. SiT's own arithmetic has one time per sample, as ours has: there only the loop differs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbone.sit import Block, SiT, modulate
from harness.backbone.times import Times
from harness.backbone.tokens import unpatchify
from harness.batch import Batch, Draw
from harness.path import interpolate
from methods.align import cosine
from methods.method import flow_loss


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


def flow_loss_released(side: Any, batch: Batch, draw: Draw) -> Tensor:
    """SiT Eq. 7, one time per sample."""
    x = interpolate(batch.x0, draw.noise, draw.times, side.model.config)
    velocity = side.forward(side.model)(x, draw.times, batch.y).velocity
    return flow_loss(velocity, batch, draw, side.method.setting)


def self_flow_loss_released(side: Any, batch: Batch, draw: Draw) -> Tensor:
    """Self-Flow Eq. 2-7."""
    config, settings, run = side.model.config, side.method.config, side.forward(forward)
    x = interpolate(batch.x0, draw.noise, draw.times, config)
    velocity, hidden = run(side.model, x, tau_of(draw.times, config.tokens), batch.y, settings.student_layer)
    clean = Times.per_sample(draw.extra["cleaner"][:, 0])
    x_clean = interpolate(batch.x0, draw.noise, clean, config)
    with torch.no_grad():
        _, target = run(side.ema, x_clean, tau_of(clean, config.tokens), batch.y, settings.teacher_layer)
    align = (1 - cosine(side.method.projector(hidden), target)).mean()
    return flow_loss(velocity, batch, draw, side.method.setting) + settings.gamma * align


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
