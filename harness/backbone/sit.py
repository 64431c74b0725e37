"""SiT, the Scalable Interpolant Transformer (Ma et al., arXiv 2401.08740, models.py), with times per token.

The network is the released one: adaLN-Zero blocks, frozen sin-cos positions, label and timestep embeddings, parameter names
included. Two things are ours: attention is fused, and modulation is computed once per noise level (see times.py).

    B  samples    K  levels    T  tokens    D  width    N  heads    C, H, W  channels and pixels    E  extra channels
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbone.sizes import Size
from harness.backbone.times import Times
from harness.backbone.tokens import sincos_2d, unpatchify


@dataclass(frozen=True)
class SiTConfig:
    """Everything that fixes the shape of a SiT."""

    size: Size
    patch: int
    shape: tuple[int, int, int]
    """(channels, height, width) of x."""
    classes: int
    """The label table has one row more: the null label, which is `classes`."""
    learn_sigma: bool = False
    """Twice the output channels, the second half unused (as the released SiT has it)."""
    extra: int = 0
    """Channels of one more token, which is generated beside the image (REG); 0 for none."""

    def __post_init__(self) -> None:
        _, height, width = self.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"patch = {self.patch} does not divide the image size {height}x{width}")

    @property
    def grid(self) -> tuple[int, int]:
        return self.shape[1] // self.patch, self.shape[2] // self.patch

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


class Prediction(NamedTuple):
    velocity: Tensor | None
    """(B, C, H, W); None when the pass was stopped early."""
    hidden: dict[int, Tensor]
    """Layer n -> (B, T, D), the output of block n (1-based), for the layers that were tapped; with an extra token, it
    comes first: (B, 1 + T, D)."""
    extra: Tensor | None = None
    """(B, E), the velocity of the extra token."""
    heads: Mapping[int, tuple[Tensor, Tensor]] = MappingProxyType({})
    """Layer n -> queries and keys of block n, each (B, N, T, D / N), for the layers that were asked."""


class SiT(nn.Module):
    """Velocity of the linear path: v(x, tau, y), with t = 1 noise and target eps - x0."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.config = config
        depth, width, heads = config.size
        channels = config.shape[0]
        self.x_embedder = PatchEmbed(channels, width, config.patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(config.classes, width)
        self.register_buffer("pos_embed", sincos_2d(width, *config.grid))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        outputs = channels * (2 if config.learn_sigma else 1)
        self.final_layer = FinalLayer(width, outputs * config.patch**2, config.extra)
        if config.extra:
            self.extra_embedder = ExtraEmbed(config.extra, width)

    def forward(
        self,
        x: Tensor,
        times: Times,
        y: Tensor,
        *,
        taps: Collection[int] = (),
        stop_after: int | None = None,
        groups: Tensor | None = None,
        extra: Tensor | None = None,
        heads: Collection[int] = (),
    ) -> Prediction:
        """One pass.

        x: (B, C, H, W); times: K levels per sample; y: (B,) labels, `classes` for none. `taps` names the layers whose
        output is returned; `stop_after` ends the pass behind that layer; `groups` (B, T) lets a token attend only to
        tokens of its own group. `extra` (B, E) is the extra token, at the sample's one level and without position; None
        leaves it out. `heads` names the layers whose queries and keys are returned.
        """
        c_BKD = self.t_embedder(times.levels) + self.y_embedder(y)[:, None]
        c_BKD = F.silu(c_BKD)
        mask = None if groups is None else (groups[:, None, :, None] == groups[:, None, None, :])
        h = self.x_embedder(x) + self.pos_embed
        if extra is not None:
            h = torch.cat([self.extra_embedder(extra)[:, None], h], dim=1)
        hidden, heard = {}, {}
        for layer, block in enumerate(self.blocks, start=1):
            h, queries_keys = block(h, c_BKD, times, mask)
            if layer in taps:
                hidden[layer] = h
            if layer in heads:
                heard[layer] = queries_keys
            if layer == stop_after:
                return Prediction(None, hidden, heads=heard)
        out, extra = self.final_layer(h, c_BKD, times, extra is not None)
        out = unpatchify(out, self.config.patch, *self.config.shape[1:])
        return Prediction(out[:, : self.config.shape[0]], hidden, extra, heard)


class Block(nn.Module):
    """adaLN-Zero transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, 4 * width)
        self.adaLN_modulation = nn.Sequential(
            nn.Identity(), nn.Linear(width, 6 * width)
        )  # SiLU: once, in forward

    def forward(
        self, h: Tensor, c_BKD: Tensor, times: Times, mask: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Tokens (B, T, D), and the queries and keys of the attention."""
        modulation = times.select(self.adaLN_modulation(c_BKD))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        mixed, queries_keys = self.attn(modulate(h, shift_a, scale_a), mask)
        h = h + gate_a * mixed
        return h + gate_m * self.mlp(modulate(h, shift_m, scale_m)), queries_keys


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, h: Tensor, mask: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        B, T, D = h.shape
        q, k, v = self.qkv(h).reshape(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(out.transpose(1, 2).reshape(B, T, D)), (q, k)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(h), approximate="tanh"))


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int, extra: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, outputs)
        if extra:
            self.linear_extra = nn.Linear(width, extra)

    def forward(
        self, h: Tensor, c_BKD: Tensor, times: Times, has_extra: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Patches of the velocity (B, T, outputs), and the extra token's velocity (B, E) where there is one."""
        shift, scale = times.select(self.adaLN_modulation(c_BKD)).chunk(2, dim=-1)
        h = modulate(h, shift, scale)
        if has_extra:
            return self.linear(h[:, 1:]), self.linear_extra(h[:, 0])
        return self.linear(h), None


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ExtraEmbed(nn.Module):
    """The extra token at the network's width: a linear layer, then a layer norm (REG models/sit.py)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, extra: Tensor) -> Tensor:
        return self.norm(self.proj(extra))


class TimestepEmbedder(nn.Module):
    """Sinusoids of t at 128 frequencies (cosines first), then a two-layer MLP."""

    def __init__(self, width: int, frequencies: int = 128) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("frequency", timestep_frequencies(frequencies), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = t[..., None].float() * self.frequency
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


class LabelEmbedder(nn.Module):
    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters, then scale and shift; h: (B, T, D), the others (B, T or 1, D)."""
    return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift


def timestep_frequencies(count: int) -> Tensor:
    """10000^(-i / count), i = 0 .. count - 1."""
    return torch.exp(-math.log(10000.0) * torch.arange(count, dtype=torch.float32) / count)
