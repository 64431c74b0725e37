"""The released networks' forward pass, written from their code, as an authority for converted weights.

It uses released names, shapes and conventions: the direction of time, the sign of the velocity, and sigma
channels that are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbone.condition import Condition, Text
from harness.backbone.network import Backbone
from harness.backbone.released_weights import DATA_AT_ONE
from harness.backbone.times import Times
from harness.errors import UserError
from harness.exchange.layouts import Found
from harness.exchange.released_layers import attended, linear, mlp, modulated, time_embedding

TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest velocity."""
TIMES = (0.25, 0.8)
TEXT_LENGTH = 6


def _condition(found: Found, draws: torch.Generator) -> Condition:
    if found.text_dim:
        return Text(torch.randn(len(TIMES), TEXT_LENGTH, found.text_dim, generator=draws))
    return torch.arange(len(TIMES)) % (found.classes + 1)


@torch.no_grad()
def check_convention(state: Mapping[str, Tensor], found: Found, model: Backbone) -> float:
    """Return the largest difference between a released network and ours, relative to the largest velocity.

    Both read the same noise at the same times, each in its own convention. Raises `UserError` if the weights
    give no finite velocity, or if the two differ.
    """
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(len(TIMES), *found.shape, generator=draws)
    extra = torch.randn(len(TIMES), found.extra, generator=draws) if found.extra else None
    t, y = torch.tensor(TIMES), _condition(found, draws)
    ours = model.eval()(x, Times.per_sample(t), y, extra=extra).velocity
    backwards = found.layout in DATA_AT_ONE
    theirs = released_velocity(state, found, x, 1 - t if backwards else t, y, extra)
    theirs = -theirs if backwards else theirs
    scale = theirs.abs().max().clamp(min=1e-6)
    error = ((ours - theirs).abs().max() / scale).item()
    if not math.isfinite(error):
        raise UserError("these weights give velocities that are not finite; the file is damaged")
    if error > TOLERANCE:
        raise UserError(
            f"the converted network differs from the released one by {error:.1e} of its largest velocity "
            f"(at most {TOLERANCE:g}); these weights are not those of layout '{found.layout}'"
        )
    return error


def released_velocity(
    state: Mapping[str, Tensor],
    found: Found,
    x: Tensor,
    t: Tensor,
    y: Condition,
    extra: Tensor | None = None,
) -> Tensor:
    """Return the velocity of x (B, C, H, W) in the network's own convention."""
    channels, height, _ = found.shape
    p, width = found.patch, found.size.width
    grid = height // p
    if found.layout == "self-flow":
        tokens = x.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).reshape(len(x), grid * grid, -1)
        h = linear(state, "x_embedder.proj", tokens)
    else:
        weight, bias = state["x_embedder.proj.weight"], state["x_embedder.proj.bias"]
        h = F.conv2d(x, weight, bias, stride=p).flatten(2).transpose(1, 2)
    if extra is not None:
        first = linear(state, "cls_projectors2", extra)
        first = F.layer_norm(first, (width,), state["wg_norm.weight"], state["wg_norm.bias"], eps=1e-6)
        h = torch.cat([first[:, None], h], dim=1)
    h = h + state["pos_embed"]
    c, heads = time_embedding(state, t), found.size.heads
    if isinstance(y, Text):
        c, text = F.silu(c), linear(state, "context_embedder", y.features)
        for block in range(found.size.depth):
            text, h = _joint_block(state, f"joint_blocks.{block}", text, h, c, heads)
    else:
        c = F.silu(c + state["y_embedder.embedding_table.weight"][y])
        for block in range(found.size.depth):
            h = _block(state, f"blocks.{block}", h, c, heads)
    shift, scale = linear(state, "final_layer.adaLN_modulation.1", c).chunk(2, dim=1)
    out = linear(state, "final_layer.linear", modulated(h, shift, scale)[:, h.shape[1] - grid * grid :])
    image = out.reshape(len(x), grid, grid, p, p, -1)
    return torch.einsum("nhwpqc->nchpwq", image).reshape(len(x), -1, height, height)[:, :channels]


def _block(state: Mapping[str, Tensor], name: str, h: Tensor, c: Tensor, heads: int) -> Tensor:
    parts = linear(state, f"{name}.adaLN_modulation.1", c).chunk(6, dim=1)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
    qkv = linear(state, f"{name}.attn.qkv", modulated(h, shift_a, scale_a))
    mixed = attended(qkv, heads)
    h = h + gate_a[:, None] * linear(state, f"{name}.attn.proj", mixed)
    return h + gate_m[:, None] * mlp(state, f"{name}.mlp", modulated(h, shift_m, scale_m))


def _joint_block(
    state: Mapping[str, Tensor], name: str, text: Tensor, h: Tensor, c: Tensor, heads: int
) -> tuple[Tensor, Tensor]:
    """Return text and image tokens after a block of REPA's models/mmdit.py; the last block ends the text."""
    streams = {f"{name}.context_block": text, f"{name}.x_block": h}
    parts = {stream: _modulation(state, stream, c) for stream in streams}
    qkv = [
        linear(state, f"{stream}.attn.qkv", modulated(tokens, *parts[stream][:2]))
        for stream, tokens in streams.items()
    ]
    mixed = attended(torch.cat(qkv, dim=1), heads)
    outputs = []
    each = mixed.split([text.shape[1], h.shape[1]], dim=1)
    for (stream, tokens), out in zip(streams.items(), each, strict=True):
        if len(parts[stream]) > 2:
            _, _, gate_a, shift_m, scale_m, gate_m = parts[stream]
            tokens = tokens + gate_a[:, None] * linear(state, f"{stream}.attn.proj", out)
            inner = mlp(state, f"{stream}.mlp", modulated(tokens, shift_m, scale_m))
            tokens = tokens + gate_m[:, None] * inner
        outputs.append(tokens)
    return outputs[0], outputs[1]


def _modulation(state: Mapping[str, Tensor], stream: str, c: Tensor) -> tuple[Tensor, ...]:
    """Return the modulations of a stream, each (B, D): six, or two of a text stream that ends."""
    return linear(state, f"{stream}.adaLN_modulation.1", c).split(c.shape[1], dim=1)
