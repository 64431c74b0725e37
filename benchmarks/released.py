"""The released arithmetic of a training step, to measure against; the networks and weights are ours.

Self-Flow's `src/model.py` (reference commit 53db4f0) runs the adaLN linear on every token, and the teacher
runs all blocks though one of them is read. SiT's own arithmetic has one time per sample, as ours has: there
the loop differs, and how the tokens lie in memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbone.sit import Block, SiT
from harness.backbone.times import Times
from harness.backbone.tokens import unpatchify
from harness.flow.batch import Batch, Draw
from harness.flow.path import interpolate
from methods.common.alignment import cosine
from methods.common.method import flow_loss


def forward(model: SiT, h: Tensor, tau_BT: Tensor, y: Tensor, tap: int) -> tuple[Tensor, Tensor]:
    """Velocity (B, C, H, W) and the output of block `tap`, of tokens without positions; the conditioning of
    every column of tau, (B, T) or (B, 1), is computed for itself."""
    c_BTD = F.silu(model.t_embedder(tau_BT) + model.y_embedder(y)[:, None])
    h = h + model.pos_embed
    hidden = h
    for layer, block in enumerate(model.blocks, start=1):
        h = _block(block, h, c_BTD)
        if layer == tap:
            hidden = h
    shift, scale = model.final_layer.adaLN_modulation(c_BTD).chunk(2, dim=-1)
    out = model.final_layer.linear(_modulate(h, shift, scale))
    config = model.config
    return unpatchify(out, config.parts[0].patch, config.shape[1:])[:, : config.shape[0]], hidden


def flow_loss_released(side: Any, batch: Batch, draw: Draw) -> Tensor:
    """SiT Eq. 7, one time per sample; the tokens lie as the convolution leaves them (timm's PatchEmbed)."""
    x = interpolate(batch.x0, draw.noise, draw.times, side.model.config)
    h = side.model.x_embedder.proj(x).flatten(2).transpose(1, 2)
    velocity, _ = side.forward(forward)(side.model, h, draw.times.levels, batch.y, 0)
    return flow_loss(velocity, batch, draw, side.method.setting)


def self_flow_loss_released(side: Any, batch: Batch, draw: Draw) -> Tensor:
    """Self-Flow Eq. 2-7."""
    config, settings, run = side.model.config, side.method.config, side.forward(forward)
    x = interpolate(batch.x0, draw.noise, draw.times, config)
    h = side.model.x_embedder(x)
    velocity, hidden = run(side.model, h, tau_of(draw.times, config.tokens), batch.y, settings.student_layer)
    clean = Times.per_sample(draw.extra["cleaner"][:, 0])
    x_clean = interpolate(batch.x0, draw.noise, clean, config)
    with torch.no_grad():
        h = side.ema.x_embedder(x_clean)
        _, target = run(side.ema, h, tau_of(clean, config.tokens), batch.y, settings.teacher_layer)
    align = (1 - cosine(side.method.projector(hidden), target)).mean()
    return flow_loss(velocity, batch, draw, side.method.setting) + settings.gamma * align


def _block(block: Block, h: Tensor, c_BTD: Tensor) -> Tensor:
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(c_BTD).chunk(6, dim=-1)
    h = h + gate_a * block.attn(_modulate(h, shift_a, scale_a), None)[0]
    return h + gate_m * block.mlp(_modulate(h, shift_m, scale_m))


def _modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift


def tau_of(times: Times, tokens: int) -> Tensor:
    """The time of every token, (B, T), also where they all share one."""
    return times.per_token_levels().expand(-1, tokens)


def ema_step(ema: SiT, model: SiT, decay: float) -> None:
    """The released loop's update, one parameter at a time."""
    with torch.no_grad():
        for shadow, parameter in zip(ema.parameters(), model.parameters(), strict=True):
            shadow.mul_(decay).add_(parameter, alpha=1 - decay)
