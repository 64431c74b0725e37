"""Self-attention, softmax(q k^T / sqrt(C)) v.

It uses PyTorch's fused kernel, except in bfloat16 on a CPU, where that kernel is no faster than in float32.
Explicit matrix products are faster there, at the same precision (benchmarks.before_after).

    B  samples    T  tokens    D  width    N  heads    C  channels of a head
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone.rotary import rotate

WRITTEN_OUT = 1024
"""The longest sequence for explicit products, which keep T x T weights for the backward pass."""


class Attends(nn.Module):
    """A module that calls `attention`."""

    fused = False
    """Use PyTorch's kernel on a CPU too, to count the memory that a GPU will need."""


class Attention(Attends):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, h: Tensor, mask: Tensor | None, turns: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return tokens (B, T, D), and queries and keys (B, N, T, C), which `turns` rotates if given."""
        B, T, D = h.shape
        q, k, v = self.qkv(h).reshape(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        out = attention(q, k, v, mask, fused=self.fused)
        return self.proj(out.transpose(1, 2).reshape(B, T, D)), (q, k)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, fused: bool = False) -> Tensor:
    """Return attention outputs (B, N, T, C) for q of that shape, and for k, v (B, N, S, C).

    The mask is bool, broadcast to (B, N, T, S), and true where a query may attend to a key. `fused` uses
    PyTorch's kernel on every device.
    """
    if not fused and q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= WRITTEN_OUT:
        return WrittenOut.apply(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class WrittenOut(torch.autograd.Function):
    """Attention with the precision of the fused kernel: scores and softmax in float32, other products in
    bfloat16."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-1, -2)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            weights = scores.softmax(-1).to(v.dtype)
            ctx.save_for_backward(q, k, v, weights)
            return weights @ v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,), (q, k, v, weights) = grads, ctx.saved_tensors
        grad_weights = grad @ v.transpose(-1, -2)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_scores = grad_scores * q.shape[-1] ** -0.5
        return grad_scores @ k, grad_scores.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ grad, None
