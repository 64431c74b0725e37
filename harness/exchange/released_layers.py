"""Layers of the released networks, written from their code, by the names of their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def time_embedding(state: Mapping[str, Tensor], t: Tensor) -> Tensor:
    """Return the embedding (B, D) of times (B,)."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    angle = t[:, None] * frequencies
    code = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
    return linear(state, "t_embedder.mlp.2", F.silu(linear(state, "t_embedder.mlp.0", code)))


def attended(qkv: Tensor, heads: int) -> Tensor:
    """Return softmax(q k^T / sqrt(C)) v, (B, T, D), of queries, keys and values (B, T, 3 D)."""
    q, k, v = (a.unflatten(2, (heads, -1)).transpose(1, 2) for a in qkv.chunk(3, dim=2))
    weights = ((q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def mlp(state: Mapping[str, Tensor], name: str, h: Tensor) -> Tensor:
    """Return two linear layers with GELU between them."""
    return linear(state, f"{name}.fc2", F.gelu(linear(state, f"{name}.fc1", h), approximate="tanh"))


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return the layer norm of tokens (B, T, D), scaled and shifted by (B, D)."""
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Return the linear layer of a name."""
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
