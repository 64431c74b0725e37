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

from harness.backbone.released_weights import DATA_AT_ONE
from harness.backbone.sit import SiT
from harness.backbone.times import Times
from harness.errors import UserError
from harness.exchange.layouts import Found

TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest velocity."""
TIMES = (0.25, 0.8)


@torch.no_grad()
def check_convention(state: Mapping[str, Tensor], found: Found, model: SiT) -> float:
    """Return the largest difference between a released network and ours, relative to the largest velocity.

    Both read the same noise at the same times, each in its own convention. Raises `UserError` if the weights
    give no finite velocity, or if the two differ.
    """
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(len(TIMES), *found.shape, generator=draws)
    extra = torch.randn(len(TIMES), found.extra, generator=draws) if found.extra else None
    t, y = torch.tensor(TIMES), torch.arange(len(TIMES)) % (found.classes + 1)
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
    state: Mapping[str, Tensor], found: Found, x: Tensor, t: Tensor, y: Tensor, extra: Tensor | None = None
) -> Tensor:
    """Return the velocity of x (B, C, H, W) in the network's own convention."""
    channels, height, _ = found.shape
    p, width = found.patch, found.size.width
    grid = height // p
    if found.layout == "self-flow":
        tokens = x.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).reshape(len(x), grid * grid, -1)
        h = _linear(state, "x_embedder.proj", tokens)
    else:
        weight, bias = state["x_embedder.proj.weight"], state["x_embedder.proj.bias"]
        h = F.conv2d(x, weight, bias, stride=p).flatten(2).transpose(1, 2)
    if extra is not None:
        first = _linear(state, "cls_projectors2", extra)
        first = F.layer_norm(first, (width,), state["wg_norm.weight"], state["wg_norm.bias"], eps=1e-6)
        h = torch.cat([first[:, None], h], dim=1)
    h = h + state["pos_embed"]
    c = F.silu(_time(state, t) + state["y_embedder.embedding_table.weight"][y])
    for block in range(found.size.depth):
        h = _block(state, f"blocks.{block}", h, c, found.size.heads)
    shift, scale = _linear(state, "final_layer.adaLN_modulation.1", c).chunk(2, dim=1)
    out = _linear(state, "final_layer.linear", _modulated(h, shift, scale)[:, h.shape[1] - grid * grid :])
    image = out.reshape(len(x), grid, grid, p, p, -1)
    return torch.einsum("nhwpqc->nchpwq", image).reshape(len(x), -1, height, height)[:, :channels]


def _time(state: Mapping[str, Tensor], t: Tensor) -> Tensor:
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    angle = t[:, None] * frequencies
    code = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
    return _linear(state, "t_embedder.mlp.2", F.silu(_linear(state, "t_embedder.mlp.0", code)))


def _block(state: Mapping[str, Tensor], name: str, h: Tensor, c: Tensor, heads: int) -> Tensor:
    parts = _linear(state, f"{name}.adaLN_modulation.1", c).chunk(6, dim=1)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
    qkv = _linear(state, f"{name}.attn.qkv", _modulated(h, shift_a, scale_a))
    q, k, v = qkv.reshape(*h.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    weights = ((q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)).softmax(dim=-1)
    mixed = (weights @ v).transpose(1, 2).reshape(h.shape)
    h = h + gate_a[:, None] * _linear(state, f"{name}.attn.proj", mixed)
    inner = F.gelu(_linear(state, f"{name}.mlp.fc1", _modulated(h, shift_m, scale_m)), approximate="tanh")
    return h + gate_m[:, None] * _linear(state, f"{name}.mlp.fc2", inner)


def _modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def _linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
