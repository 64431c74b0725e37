"""The arithmetic of the released training steps, for comparison; networks and weights are ours.

Self-Flow's `src/model.py` (reference commit 53db4f0) applies the adaLN linear layer to every token, and its
teacher runs all blocks although only one is read. SiT's arithmetic has one time per sample, like ours: only
the loop and the memory layout of the tokens differ.
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
    """Return the velocity (B, C, H, W) and the output of block `tap`.

    `h` (B, T, D) are tokens without positions. The conditioning is computed for each column of tau, which
    is (B, T) or (B, 1).
    """
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
    """Return SiT Eq. 7 with one time per sample; tokens keep the layout of the convolution (timm's
    PatchEmbed)."""
    x = interpolate(batch.x0, draw.noise, draw.times, side.model.config)
    h = side.model.x_embedder.proj(x).flatten(2).transpose(1, 2)
    velocity, _ = side.forward(forward)(side.model, h, draw.times.levels, batch.y, 0)
    return flow_loss(velocity, batch, draw, side.method.setting)


def self_flow_loss_released(side: Any, batch: Batch, draw: Draw) -> Tensor:
    """Return Self-Flow Eq. 2-7."""
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
    """Return the time of every token (B, T), even if all tokens of a sample have the same time."""
    return times.per_token_levels().expand(-1, tokens)


def ema_step(ema: SiT, model: SiT, decay: float) -> None:
    """Update the EMA as the released loop does, one parameter at a time."""
    with torch.no_grad():
        for shadow, parameter in zip(ema.parameters(), model.parameters(), strict=True):
            shadow.mul_(decay).add_(parameter, alpha=1 - decay)
