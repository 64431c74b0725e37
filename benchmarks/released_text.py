"""The arithmetic of REPA's text-to-image network, for comparison; networks and weights are ours.

As in REPA's `models/mmdit.py` (67f7145), every stream of a block applies SiLU to the condition, queries, keys
and values are concatenated one by one, and the text of the last block has queries and attention outputs that
nothing reads. With times per token, modulation is applied to every token, as in Self-Flow's `src/model.py`.
A sampler with guidance passes the text of every sample of both halves through the network, in every step.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbone.mmdit import JointBlock, MMDiT, Stream
from harness.backbone.tokens import unpatchify


def forward(model: MMDiT, x: Tensor, tau: Tensor, features: Tensor) -> Tensor:
    """Return the velocity of x (B, C, H, W) at times per token, tau (B, T), or per sample, (B, 1)."""
    config = model.config
    h = model.x_embedder.proj(x).flatten(2).transpose(1, 2) + model.pos_embed
    c_BTD = model.t_embedder(tau)
    c_text = c_BTD.mean(dim=1, keepdim=True)
    text = model.context_embedder(features)
    for block in model.blocks:
        # The container's items are modules of any kind.
        assert isinstance(block, JointBlock)
        text, h = _block(block, text, h, c_text, c_BTD)
    shift, scale = model.final_layer.adaLN_modulation(F.silu(c_BTD)).chunk(2, dim=-1)
    out = model.final_layer.linear(_modulate(h, shift, scale))
    return unpatchify(out, config.parts[0].patch, config.shape[1:])


@torch.no_grad()
def sample(model: MMDiT, z: Tensor, features: Tensor, null: Tensor, steps: int, guidance: float) -> Tensor:
    """Return Euler samples as REPA's `samplers_t2i.py` does, with its float64 state; null: (L, D)."""
    x, size = z.to(torch.float64), len(z)
    both = torch.cat([features, null.expand(size, -1, -1)])
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    for t, t_next in itertools.pairwise(times):
        tau = torch.full((2 * size, 1), t, dtype=torch.float32, device=z.device)
        velocity = forward(model, torch.cat([x, x]).float(), tau, both).to(torch.float64)
        conditional, free = velocity.chunk(2)
        x = x + (t_next - t) * (free + guidance * (conditional - free))
    return x


def _block(
    block: JointBlock, text: Tensor, h: Tensor, c_text: Tensor, c_BTD: Tensor
) -> tuple[Tensor, Tensor]:
    of_text = _modulation(block.context_block, c_text)
    of_image = _modulation(block.x_block, c_BTD)
    theirs = _heads(block, block.context_block.attn.qkv(_modulate(text, *of_text[:2])))
    ours = _heads(block, block.x_block.attn.qkv(_modulate(h, *of_image[:2])))
    q, k, v = (torch.cat(pair, dim=1).transpose(1, 2) for pair in zip(theirs, ours, strict=True))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    first, second = mixed[:, : text.shape[1]], mixed[:, text.shape[1] :]
    if not block.context_block.pre_only:
        text = _after(block.context_block, text, first, of_text)
    return text, _after(block.x_block, h, second, of_image)


def _after(stream: Stream, h: Tensor, mixed: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
    _, _, gate_a, shift_m, scale_m, gate_m = modulation
    h = h + gate_a * stream.attn.proj(mixed)
    return h + gate_m * stream.mlp(_modulate(h, shift_m, scale_m))


def _modulation(stream: Stream, c: Tensor) -> tuple[Tensor, ...]:
    return stream.adaLN_modulation(F.silu(c)).split(c.shape[-1], dim=-1)


def _heads(block: JointBlock, qkv: Tensor) -> tuple[Tensor, ...]:
    return qkv.unflatten(2, (3, block.heads, -1)).unbind(dim=2)


def _modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift
